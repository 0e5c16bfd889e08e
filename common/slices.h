// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"

namespace conclave {

// The unit that a holder holds: columns [begin, end) of the intermediate
// dimension of one expert; a whole expert is [0, intermediate).
struct Slice {
  LayerId layer{};
  ExpertId expert{};
  int32_t begin = 0;
  int32_t end = 0;
  int32_t width() const { return end - begin; }
  friend auto operator<=>(const Slice&, const Slice&) = default;
};

// A fixed list of slices, ascending by (layer, expert). Within one layer all
// slices have one width and each expert stands at most once; the position of
// an expert within its layer's part is its local index. A shard's partial sum
// is computed whole by one holder.
struct Shard {
  ShardId id{};
  std::vector<Slice> slices;
};

// Which holder answers for which shard. The list of shards alone decides the
// bits of a result; `holder` does not.
struct Placement {
  std::vector<Shard> shards;     // [shards], id == position
  std::vector<WorkerId> holder;  // [shards], kCoordinator = local
};

// Sizes that slices are checked against.
struct ExpertShape {
  int32_t layers = 0;        // MoE layers
  int32_t experts = 0;       // per layer
  int32_t intermediate = 0;  // columns of one expert
  int32_t hidden = 0;
  int32_t column_multiple = 16;  // begin and end are multiples of it
};

// Checks the rules above, and that the shards together hold every column of
// every expert of every layer exactly once. InvalidArgument names the first
// slice that breaks a rule ("layer 3, expert 7, columns [16, 40)").
absl::Status Validate(const Placement& placement, const ExpertShape& shape);

// Layer, expert and columns exist, and there is a column. Where columns may be
// cut is another question (Validate).
bool IsPartOf(const Slice& slice, const ExpertShape& shape);

std::string ToString(const Slice& slice);

}  // namespace conclave
