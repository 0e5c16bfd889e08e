// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/slices.h"
#include "coordinator/experts/experts.h"

namespace conclave::experts {

// Where an expert's columns lie: one place per shard that has a slice of it.
struct SlicePlace {
  ShardId shard{};
  int32_t slice = 0;  // local index within the shard's layer
};

// expert -> places, per layer; made once from a placement.
class PlacementIndex {
 public:
  // InvalidArgument: what conclave::Validate says.
  static absl::StatusOr<PlacementIndex> Create(Placement placement,
                                               const ExpertShape& shape);

  const Placement& placement() const { return placement_; }
  const ExpertShape& shape() const { return shape_; }
  WorkerId holder(ShardId shard) const {
    return placement_.holder[static_cast<size_t>(Index(shard))];
  }
  // Ascending shards.
  std::span<const SlicePlace> places(LayerId layer, int32_t expert) const {
    const size_t cell =
        static_cast<size_t>(Index(layer)) * shape_.experts + expert;
    return std::span(places_).subspan(begin_[cell],
                                      begin_[cell + 1] - begin_[cell]);
  }

 private:
  Placement placement_;
  ExpertShape shape_;
  std::vector<SlicePlace> places_;
  std::vector<size_t> begin_;  // [layers * experts + 1], into places_
};

// Work of one shard: entry i says that row `row[i]` of the part goes to slice
// `slice[i]` with `weight[i]`. Sorted by (slice, row), no pair twice.
struct ShardWork {
  ShardId shard{};
  std::vector<int32_t> slice;
  std::vector<int32_t> row;
  std::vector<float> weight;
  friend bool operator==(const ShardWork&, const ShardWork&) = default;
};

// Work of one holder: each row of the step that it needs, once.
struct HolderPart {
  WorkerId holder{};
  std::vector<int32_t> tokens;    // rows of the step, ascending
  std::vector<ShardWork> shards;  // ascending, none of them empty
  friend bool operator==(const HolderPart&, const HolderPart&) = default;
};

// Who computes what of one layer. Holders without work do not appear.
struct DispatchPlan {
  std::vector<HolderPart> parts;  // ascending holder: kCoordinator is first
  friend bool operator==(const DispatchPlan&, const DispatchPlan&) = default;
};

// Every choice of the router goes to every slice of its expert, exactly once.
// InvalidArgument: a layer or expert that does not exist, an expert twice in a
// row, arrays of the wrong length. ResourceExhausted: more rows than a step
// may carry.
absl::StatusOr<DispatchPlan> BuildPlan(const Routing& routing,
                                       LayerId layer,
                                       const PlacementIndex& index);

// The distinct rows of a shard's entries, ascending: the rows that its partial
// sum has.
std::vector<int32_t> DistinctRows(std::span<const int32_t> row,
                                  size_t part_rows);

std::string ToString(const DispatchPlan& plan);

}  // namespace conclave::experts
