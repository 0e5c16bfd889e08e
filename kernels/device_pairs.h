// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_queue.h"

namespace conclave::kernels {

// Which pairs make up each row, where rows have different numbers of them: row
// r has the places first[r] to first[r + 1] of `pair` and `weight`. Device
// memory.
struct DevicePairSums {
  int32_t rows = 0;
  const int32_t* first = nullptr;  // [rows + 1]
  const int32_t* pair = nullptr;   // [places]: row of y
  const float* weight = nullptr;   // [places]
};

// out[r] = sum over the places of row r, in their order, of weight * y[pair],
// in float32; rows without one get zeros. y: [pairs, cols], out: [rows, cols],
// 16-byte aligned; cols: a multiple of 4, others are InvalidArgument. A row's
// bits depend on its own places only.
absl::Status DeviceSumPairs(DeviceQueue* queue,
                            const DevicePairSums& sums,
                            const float* y,
                            int32_t cols,
                            float* out);

}  // namespace conclave::kernels
