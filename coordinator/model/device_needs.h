// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "coordinator/model/decoder.h"
#include "coordinator/model/device_weights.h"
#include "kernels/device_queue.h"

namespace conclave::model {

// What a model takes on a device, in bytes.
struct DeviceNeeds {
  uint64_t weights = 0;
  uint64_t experts = 0;  // of the weights, the routed experts
  uint64_t arrays = 0;   // of a step
  StateBytes each;       // of a KV block, of a state slot
};

struct DeviceNeedsOptions {
  int32_t rows_max = 0;  // of a step
  int32_t sequences_max = 0;
  bool exact = false;
  kernels::KvDType kv = kernels::KvDType::kBF16;
  kernels::GdnDType gdn = kernels::GdnDType::kF32;
  RoutedHere here = {};
  RankConfig rank = {};
  int32_t lanes = 1;  // the second has half of the room (group_decoder.h)
};

// Before any weight is read: from the checkpoint's headers. Nothing is
// allocated on the queue, whose device decides sizes.
absl::StatusOr<DeviceNeeds> DeviceNeedsOf(
    const checkpoint::Checkpoint& checkpoint,
    kernels::DeviceQueue* queue,
    const DeviceNeedsOptions& options);

// The weights alone.
absl::StatusOr<uint64_t> DeviceWeightBytesOf(
    const checkpoint::Checkpoint& checkpoint,
    const RoutedHere& here,
    const RankConfig& rank = {});

}  // namespace conclave::model
