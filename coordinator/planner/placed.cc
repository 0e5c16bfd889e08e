// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/planner/plan.h"
#include "coordinator/planner/predict.h"

namespace conclave::planner {
namespace {

// Node of a holder.
absl::StatusOr<size_t> NodeOf(const Request& r, WorkerId holder) {
  if (holder == kCoordinator) return size_t{0};
  const auto node = static_cast<size_t>(Index(holder)) + 1;
  if (Index(holder) < 0 || node >= r.nodes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("placement: holder ", Index(holder), " is no node"));
  }
  return node;
}

// Parts of each layer's experts, [layers][nodes].
absl::StatusOr<std::vector<std::vector<double>>> Parts(
    const Request& r, const Placement& placement) {
  const double columns =
      static_cast<double>(r.shape.num_experts) * r.shape.moe_intermediate_size;
  std::vector<std::vector<double>> parts(
      static_cast<size_t>(r.shape.num_hidden_layers),
      std::vector<double>(r.nodes.size()));
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    ASSIGN_OR_RETURN(const size_t node, NodeOf(r, placement.holder[i]));
    for (const Slice& slice : placement.shards[i].slices) {
      const auto layer = static_cast<size_t>(Index(slice.layer));
      if (layer >= parts.size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("placement: ", ToString(slice), " is no layer"));
      }
      parts[layer][node] += slice.width() / columns;
    }
  }
  return parts;
}

Split SplitOf(const Request& r, const Placement& placement) {
  for (const Shard& shard : placement.shards) {
    for (const Slice& slice : shard.slices) {
      if (slice.width() < r.shape.moe_intermediate_size) {
        return Split::kColumns;
      }
    }
  }
  return Split::kExperts;
}

}  // namespace

absl::StatusOr<Plan> PlanOf(const Request& r, const Placement& placement) {
  ASSIGN_OR_RETURN(Plan plan, EmptyPlan(r));
  ASSIGN_OR_RETURN(const auto parts, Parts(r, placement));
  const HeldWeights held = HeldBy(r);
  std::map<std::vector<double>, int32_t> alike;
  for (int32_t layer = 0; const std::vector<double>& part : parts) {
    ++alike[part];
    const auto bytes = static_cast<double>(held.Experts(layer, layer + 1));
    ++layer;
    for (size_t i = 0; i < part.size(); ++i) {
      plan.nodes[i].experts +=
          static_cast<uint64_t>(std::llround(part[i] * bytes));
    }
    const bool local = part[0] > 0 && std::count(part.begin(), part.end(), 0) ==
                                          std::ssize(part) - 1;
    ++(local ? plan.local_layers : plan.remote_layers);
  }
  for (size_t i = 1; i < plan.nodes.size(); ++i) {
    if (plan.nodes[i].experts > 0) {
      plan.nodes[i].workspace = Workspace(r.nodes[i]);
    }
  }
  plan.split = plan.remote_layers > 0 ? SplitOf(r, placement) : Split::kNone;
  std::vector<LayerShares> layers;
  for (const auto& [share, count] : alike) layers.push_back({count, share});
  PredictLayers(r, plan.split, layers, plan);
  return plan;
}

Placement PlacementOf(const Request& r, const Plan& plan) {
  const int32_t width = r.shape.moe_intermediate_size;
  Placement out;
  const auto add = [&](WorkerId holder,
                       int32_t layer_begin,
                       int32_t layer_end,
                       Slice part,
                       int32_t experts) {
    const auto id = static_cast<int32_t>(out.shards.size());
    Shard& shard = out.shards.emplace_back();
    shard.id = ShardId{id};
    out.holder.push_back(holder);
    const int32_t first = Index(part.expert);
    for (int32_t layer = layer_begin; layer < layer_end; ++layer) {
      for (int32_t expert = first; expert < first + experts; ++expert) {
        shard.slices.push_back(
            {LayerId{layer}, ExpertId{expert}, part.begin, part.end});
      }
    }
  };
  const int32_t all = r.shape.num_experts;
  const int32_t local = plan.local_layers;
  if (local > 0) {
    add(kCoordinator, 0, local, {{}, ExpertId{0}, 0, width}, all);
  }
  int32_t next = 0;  // unit
  for (size_t i = 1; i < plan.nodes.size(); ++i) {
    const int32_t units = plan.nodes[i].units;
    if (units == 0 || plan.remote_layers == 0) continue;
    const bool columns = plan.split == Split::kColumns;
    const Slice part = columns ? Slice{{},
                                       ExpertId{0},
                                       next * plan.unit,
                                       (next + units) * plan.unit}
                               : Slice{{}, ExpertId{next}, 0, width};
    add(WorkerId{static_cast<int32_t>(i) - 1},
        local,
        r.shape.num_hidden_layers,
        part,
        columns ? all : units);
    next += units;
  }
  return out;
}

}  // namespace conclave::planner
