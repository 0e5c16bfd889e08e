// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::experts {
namespace {

absl::Status CheckRouting(const Routing& routing,
                          LayerId layer,
                          const ExpertShape& shape) {
  if (Index(layer) < 0 || Index(layer) >= shape.layers) {
    return absl::InvalidArgumentError(absl::StrCat("routing: layer ",
                                                   Index(layer),
                                                   " of ",
                                                   shape.layers,
                                                   " does not exist"));
  }
  if (routing.rows > limits::kStepRowsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("routing of layer ",
                     Index(layer),
                     ": ",
                     routing.rows,
                     " rows, a step carries at most ",
                     limits::kStepRowsMax));
  }
  const size_t count = static_cast<size_t>(std::max(routing.rows, 0)) *
                       static_cast<size_t>(std::max(routing.top_k, 0));
  if (routing.rows < 0 || routing.top_k < 1 ||
      routing.top_k > limits::kTopKMax || routing.expert.size() != count ||
      routing.weight.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat("routing of layer ",
                                                   Index(layer),
                                                   ": ",
                                                   routing.rows,
                                                   " rows x ",
                                                   routing.top_k,
                                                   " choices, but ",
                                                   routing.expert.size(),
                                                   " experts and ",
                                                   routing.weight.size(),
                                                   " weights"));
  }
  return absl::OkStatus();
}

// The choices of a layer, grouped by expert; rows ascend within an expert.
struct ByExpert {
  std::vector<int32_t> begin;  // [experts + 1]
  std::vector<int32_t> row;    // [rows * top_k]
  std::vector<float> weight;   // [rows * top_k]
};

absl::StatusOr<ByExpert> GroupByExpert(const Routing& routing,
                                       LayerId layer,
                                       int32_t experts) {
  ByExpert out;
  out.begin.assign(static_cast<size_t>(experts) + 1, 0);
  for (size_t i = 0; i < routing.expert.size(); ++i) {
    const int32_t expert = routing.expert[i];
    if (expert < 0 || expert >= experts) {
      return absl::InvalidArgumentError(absl::StrCat("routing of layer ",
                                                     Index(layer),
                                                     ": row ",
                                                     i / routing.top_k,
                                                     " chose expert ",
                                                     expert,
                                                     " of ",
                                                     experts));
    }
    if (!std::isfinite(routing.weight[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("routing of layer ",
                       Index(layer),
                       ": row ",
                       i / routing.top_k,
                       " has a weight that is not finite"));
    }
    ++out.begin[expert + 1];
  }
  for (int32_t e = 0; e < experts; ++e) out.begin[e + 1] += out.begin[e];
  std::vector<int32_t> next(out.begin.begin(), out.begin.end() - 1);
  out.row.resize(routing.expert.size());
  out.weight.resize(routing.expert.size());
  for (size_t i = 0; i < routing.expert.size(); ++i) {
    const int32_t expert = routing.expert[i];
    const auto row = static_cast<int32_t>(i / routing.top_k);
    const int32_t at = next[expert]++;
    if (at > out.begin[expert] && out.row[at - 1] == row) {
      return absl::InvalidArgumentError(absl::StrCat("routing of layer ",
                                                     Index(layer),
                                                     ": row ",
                                                     row,
                                                     " chose expert ",
                                                     expert,
                                                     " twice"));
    }
    out.row[at] = row;
    out.weight[at] = routing.weight[i];
  }
  return out;
}

// Turns rows of the step into rows of the part, which gets their list.
void Compact(int32_t rows, HolderPart* part) {
  std::vector<int32_t> place(static_cast<size_t>(rows), -1);
  for (const ShardWork& work : part->shards) {
    for (const int32_t row : work.row) place[row] = 0;
  }
  for (int32_t row = 0; row < rows; ++row) {
    if (place[row] < 0) continue;
    place[row] = static_cast<int32_t>(part->tokens.size());
    part->tokens.push_back(row);
  }
  for (ShardWork& work : part->shards) {
    for (int32_t& row : work.row) row = place[row];
  }
}

}  // namespace

absl::StatusOr<PlacementIndex> PlacementIndex::Create(
    Placement placement, const ExpertShape& shape) {
  RETURN_IF_ERROR(Validate(placement, shape));
  PlacementIndex out;
  const size_t cells = static_cast<size_t>(shape.layers) * shape.experts;
  const auto cell = [&](const Slice& slice) {
    return static_cast<size_t>(Index(slice.layer)) * shape.experts +
           Index(slice.expert);
  };
  out.begin_.assign(cells + 1, 0);
  for (const Shard& shard : placement.shards) {
    for (const Slice& slice : shard.slices) ++out.begin_[cell(slice) + 1];
  }
  for (size_t i = 0; i < cells; ++i) out.begin_[i + 1] += out.begin_[i];
  out.places_.resize(out.begin_.back());
  std::vector<size_t> next(out.begin_.begin(), out.begin_.end() - 1);
  for (const Shard& shard : placement.shards) {
    int32_t local = 0;
    for (size_t i = 0; i < shard.slices.size(); ++i) {
      const Slice& slice = shard.slices[i];
      if (i > 0 && shard.slices[i - 1].layer != slice.layer) local = 0;
      out.places_[next[cell(slice)]++] = {shard.id, local++};
    }
  }
  out.placement_ = std::move(placement);
  out.shape_ = shape;
  return out;
}

absl::StatusOr<DispatchPlan> BuildPlan(const Routing& routing,
                                       LayerId layer,
                                       const PlacementIndex& index) {
  RETURN_IF_ERROR(CheckRouting(routing, layer, index.shape()));
  const int32_t experts = index.shape().experts;
  ASSIGN_OR_RETURN(const ByExpert choices,
                   GroupByExpert(routing, layer, experts));
  // Local indices ascend with the expert, so that going through the experts in
  // order sorts the entries of every shard by (slice, row).
  std::vector<ShardWork> work(index.placement().shards.size());
  for (int32_t expert = 0; expert < experts; ++expert) {
    const int32_t begin = choices.begin[expert];
    const int32_t end = choices.begin[expert + 1];
    if (begin == end) continue;
    for (const SlicePlace& place : index.places(layer, expert)) {
      ShardWork& shard = work[static_cast<size_t>(Index(place.shard))];
      shard.shard = place.shard;
      shard.slice.insert(shard.slice.end(), end - begin, place.slice);
      shard.row.insert(shard.row.end(),
                       choices.row.begin() + begin,
                       choices.row.begin() + end);
      shard.weight.insert(shard.weight.end(),
                          choices.weight.begin() + begin,
                          choices.weight.begin() + end);
    }
  }
  DispatchPlan plan;
  for (ShardWork& shard : work) {
    if (shard.row.empty()) continue;
    const WorkerId holder = index.holder(shard.shard);
    auto part = std::find_if(
        plan.parts.begin(), plan.parts.end(), [&](const HolderPart& p) {
          return p.holder >= holder;
        });
    if (part == plan.parts.end() || part->holder != holder) {
      part = plan.parts.insert(part, HolderPart{holder, {}, {}});
    }
    part->shards.push_back(std::move(shard));
  }
  for (HolderPart& part : plan.parts) Compact(routing.rows, &part);
  return plan;
}

std::vector<int32_t> DistinctRows(std::span<const int32_t> row,
                                  size_t part_rows) {
  std::vector<bool> seen(part_rows, false);
  for (const int32_t r : row) seen[static_cast<size_t>(r)] = true;
  std::vector<int32_t> out;
  for (size_t r = 0; r < part_rows; ++r) {
    if (seen[r]) out.push_back(static_cast<int32_t>(r));
  }
  return out;
}

std::string ToString(const DispatchPlan& plan) {
  std::string out;
  for (const HolderPart& part : plan.parts) {
    absl::StrAppend(&out,
                    part.holder == kCoordinator
                        ? "coordinator"
                        : absl::StrCat("worker ", Index(part.holder)),
                    ": tokens ",
                    absl::StrJoin(part.tokens, " "),
                    "\n");
    for (const ShardWork& work : part.shards) {
      absl::StrAppend(&out, "  shard ", Index(work.shard), ":");
      for (size_t i = 0; i < work.row.size(); ++i) {
        absl::StrAppend(
            &out, " ", work.slice[i], "<-", work.row[i], "*", work.weight[i]);
      }
      absl::StrAppend(&out, "\n");
    }
  }
  return out;
}

}  // namespace conclave::experts
