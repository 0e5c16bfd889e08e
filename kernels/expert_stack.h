// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/device_matrix.h"
#include "kernels/device_product.h"
#include "kernels/moe.h"

// Experts of one layer on a device: how host weights become the two matrices
// of a DeviceExpertStack.
namespace conclave::kernels {

// Of one expert, or of a slice of one: gate and up are [width, hidden], down is
// [hidden, width].
struct ExpertLayouts {
  WeightLayout gate, up, down;
};
struct ExpertViews {
  WeightView gate, up, down;  // host memory
};

WeightLayout LayoutOf(const WeightView& view);
ExpertLayouts LayoutsOf(const ExpertViews& views);

// Expert `i` of a shard's layer.
ExpertViews ViewsOf(const ShardLayerWeights& layer, int32_t i);

// Of `stack` experts of one layout; 0: a format that no device matrix has.
uint64_t ExpertStackBytes(const ExpertLayouts& each, int32_t stack);

// Room for so many, whose numbers are still to come. Errors as MakeMatrix.
absl::StatusOr<DeviceExpertStack> MakeExpertStack(DeviceQueue* queue,
                                                  const ExpertLayouts& each,
                                                  int32_t stack,
                                                  const std::string& what);

// Expert `index` of the stack. The views may be freed on return.
absl::Status LoadExpert(MatrixLoader* loader,
                        const ExpertViews& views,
                        int32_t index,
                        DeviceExpertStack* to);

}  // namespace conclave::kernels
