// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_pairs.h"
#include "kernels/device_product.h"
#include "kernels/device_queue.h"

namespace conclave::kernels {

// What a router chose for rows, in device memory: `expert` and `weight` of the
// entries that DeviceRoute fills.
struct DeviceChoices {
  int32_t rows = 0;
  int32_t per_row = 0;
  const int32_t* expert = nullptr;  // [rows, per_row], distinct within a row
  const float* weight = nullptr;    // [rows, per_row]
};

// Which experts are here, as numbers of the matrices of a stack.
inline constexpr int32_t kHeldNumbersMax = 1024;
struct DeviceHeld {
  int32_t experts = 0;
  int32_t numbers = 0;              // all are below; at most kHeldNumbersMax
  const int32_t* number = nullptr;  // [experts], device memory; -1: not here
};

// Those pairs of rows and experts that are here, as DeviceExperts and
// DeviceSumPairs take them: a row's in ascending order of their numbers.
struct HeldPairs {
  DeviceEntries entries;  // `place`: of a row's choices, -1 where not here
  DevicePairSums sums;
  int32_t* first = nullptr;  // what `sums` points to
  int32_t* pair = nullptr;
  float* weight = nullptr;
};

// Views of `words`, 16-byte aligned device memory of HeldPairsBytes bytes.
// group_rows: of GroupRowsFor, told of the pairs that are here on average.
HeldPairs HeldPairsAt(const DeviceChoices& choices,
                      const DeviceHeld& held,
                      int32_t group_rows,
                      int32_t* words);
size_t HeldPairsBytes(int32_t rows, int32_t per_row);

// InvalidArgument: too many numbers.
absl::Status CheckHeld(const DeviceHeld& held);

// Queues the sorting of the pairs into `pairs`. Experts that do not exist are
// not here. Can be recorded. InvalidArgument: too many numbers.
absl::Status DeviceHeldPairs(DeviceQueue* queue,
                             const DeviceChoices& choices,
                             const DeviceHeld& held,
                             const HeldPairs& pairs);

}  // namespace conclave::kernels
