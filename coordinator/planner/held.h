// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "coordinator/planner/shapes.h"

namespace conclave::planner {

// What a load holds, where one layer's experts may be stored otherwise than
// another's.
struct HeldWeights {
  WeightBytes bytes;             // `expert`: the mean
  std::vector<uint64_t> expert;  // [layers], one routed expert

  // All experts of layers [begin, end).
  uint64_t Experts(int32_t begin, int32_t end) const;
  int32_t experts_per_layer = 0;
};

// As ResidentBytes has it for a format of one kind throughout.
HeldWeights HeldAs(const checkpoint::ModelConfig& shape, WeightFormat format);

// As this checkpoint is stored, module by module; reads headers, no weights.
// MTP is that of the format.
absl::StatusOr<HeldWeights> HeldOf(const checkpoint::Checkpoint& checkpoint);

}  // namespace conclave::planner
