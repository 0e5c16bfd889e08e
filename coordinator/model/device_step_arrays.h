// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device_step.h"
#include "kernels/step_batch.h"

namespace conclave::model {

// The numbers of a step in device memory, at places that depend on its sizes
// alone: a recorded step finds new numbers where the old ones were.
class DeviceStepArrays {
 public:
  // Most of each that a step may have.
  struct Bounds {
    int32_t rows = 0;
    int32_t sequences = 0;
    int32_t blocks = 0;  // of one sequence
  };
  static absl::StatusOr<DeviceStepArrays> Create(kernels::DeviceQueue* queue,
                                                 const Bounds& bounds);

  // Sizes of a step: what a recorded one is found by.
  struct Sizes {
    int32_t rows = 0;
    int32_t sequences = 0;
    int32_t kv_stride = 1;
    int32_t rows_max = 1;
    int32_t wanted = 0;  // rows whose logits are asked for

    friend auto operator<=>(const Sizes&, const Sizes&) = default;
  };
  // As they are; kv_stride a power of two.
  static Sizes SizesOf(const kernels::StepBatch& batch, int32_t wanted);
  // One row each, filled up to a number of rows that few steps share.
  static Sizes RecordedSizesOf(const kernels::StepBatch& batch);

  // The step at these sizes; `wanted`: which rows.
  struct Step {
    kernels::DeviceStep step;
    const int32_t* wanted = nullptr;  // [sizes.wanted]
  };
  Step At(const Sizes& sizes) const;

  // Copies the numbers. Rows beyond the batch's are filled up with sequences
  // that have no state and use `spare_block`.
  absl::Status Upload(kernels::DeviceQueue* queue,
                      const Sizes& sizes,
                      const kernels::StepBatch& batch,
                      std::span<const int32_t> tokens,
                      std::span<const int32_t> wanted,
                      int32_t spare_block);

 private:
  kernels::DeviceBuffer memory_;
  std::vector<int32_t> host_;
};

}  // namespace conclave::model
