// SPDX-License-Identifier: Apache-2.0
#include "coordinator/planner/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/planner/predict.h"

namespace conclave::planner {
namespace {

std::string Gb(uint64_t bytes) {
  return absl::StrFormat("%.1f GB", static_cast<double>(bytes) * 1e-9);
}

absl::Status DoesNotFit(const std::string& what, uint64_t need, uint64_t have) {
  return absl::ResourceExhaustedError(
      absl::StrCat(what, ": needs ", Gb(need), ", ", Gb(have), " free"));
}

// Columns that move together.
int32_t UnitColumns(const Request& r) {
  return r.held.has_value() ? r.shape.expert_shape().column_multiple
                            : ColumnMultiple(r.shape, r.format);
}

int32_t UnitsOf(const Request& r, Split split) {
  return split == Split::kExperts
             ? r.shape.num_experts
             : r.shape.moe_intermediate_size / UnitColumns(r);
}

// The coordinator's own part and how many layers of experts, `most` of them at
// the most, still fit there.
absl::StatusOr<Plan> Begin(const Request& r, int32_t most) {
  ASSIGN_OR_RETURN(Plan plan, EmptyPlan(r));
  const HeldWeights weights = HeldBy(r);
  Holding& home = plan.nodes[0];
  if (home.Used() > home.memory) {
    return DoesNotFit(
        home.node == "coordinator"
            ? "the coordinator without any expert"
            : absl::StrCat("coordinator ", home.node, " without any expert"),
        home.Used(),
        home.memory);
  }
  const int32_t layers = r.shape.num_hidden_layers;
  most = std::min(most, layers);
  while (plan.local_layers < most &&
         weights.Experts(0, plan.local_layers + 1) <= home.Headroom()) {
    ++plan.local_layers;
  }
  plan.remote_layers = layers - plan.local_layers;
  home.experts = weights.Experts(0, plan.local_layers);
  return plan;
}

// Bytes of one unit in all remote layers.
uint64_t UnitBytes(const Request& r, const Plan& plan, Split split) {
  return HeldBy(r).Experts(plan.local_layers, r.shape.num_hidden_layers) /
         static_cast<uint64_t>(UnitsOf(r, split));
}

// How many units each worker has room for.
std::vector<int32_t> Room(const Request& r, const Plan& plan, Split split) {
  const uint64_t unit = UnitBytes(r, plan, split);
  std::vector<int32_t> room;
  for (size_t i = 1; i < r.nodes.size(); ++i) {
    const Node& node = r.nodes[i];
    const uint64_t units = (node.memory_bytes - Workspace(node)) / unit;
    room.push_back(static_cast<int32_t>(
        std::min<uint64_t>(units, static_cast<uint64_t>(UnitsOf(r, split)))));
  }
  return room;
}

// Shares by speed within the room: each unit goes to the worker that would
// finish first with it.
std::vector<int32_t> Shares(const Request& r,
                            const std::vector<int32_t>& room,
                            int32_t units) {
  std::vector<int32_t> out(room.size(), 0);
  for (int32_t u = 0; u < units; ++u) {
    std::optional<size_t> best;
    double best_time = 0;
    for (size_t i = 0; i < room.size(); ++i) {
      if (out[i] == room[i]) continue;
      const double time = (out[i] + 1) / r.nodes[i + 1].bytes_per_s;
      if (best && time >= best_time) continue;
      best = i;
      best_time = time;
    }
    if (!best) break;
    ++out[*best];
  }
  return out;
}

absl::Status CheckRoom(const Request& r,
                       const Plan& plan,
                       const std::vector<int32_t>& room) {
  const int64_t have = std::accumulate(room.begin(), room.end(), int64_t{0});
  if (have >= UnitsOf(r, Split::kExperts)) return absl::OkStatus();
  uint64_t need = plan.nodes[0].Used() +
                  UnitBytes(r, plan, Split::kExperts) *
                      static_cast<uint64_t>(UnitsOf(r, Split::kExperts));
  uint64_t memory = r.nodes[0].memory_bytes;
  for (size_t i = 1; i < r.nodes.size(); ++i) {
    memory += r.nodes[i].memory_bytes;
    need += Workspace(r.nodes[i]);
  }
  const size_t nodes = r.nodes.size();
  return DoesNotFit(absl::StrCat("the model with its caches on ",
                                 nodes,
                                 nodes == 1 ? " node" : " nodes"),
                    need,
                    memory);
}

}  // namespace

std::string_view Name(Split split) {
  switch (split) {
    case Split::kNone:
      return "none";
    case Split::kColumns:
      return "columns";
    case Split::kExperts:
      return "experts";
  }
  return "none";
}

HeldWeights HeldBy(const Request& r) {
  return r.held.has_value() ? *r.held : HeldAs(r.shape, r.format);
}

// Scratch of the kernels: two percent of the memory, at most 2 GiB.
uint64_t Workspace(const Node& node) {
  constexpr uint64_t kMost = uint64_t{2} << 30;
  return std::min(kMost, node.memory_bytes / 50);
}

absl::StatusOr<Plan> EmptyPlan(const Request& r) {
  if (r.nodes.empty()) {
    return absl::InvalidArgumentError("nodes: at least the coordinator");
  }
  const WeightBytes weights = HeldBy(r).bytes;
  Plan plan;
  for (const Node& node : r.nodes) {
    plan.nodes.push_back({.node = node.name, .memory = node.memory_bytes});
  }
  Holding& home = plan.nodes[0];
  home.dense = weights.embedding + weights.dense;
  const auto sequences = static_cast<uint64_t>(r.sequences);
  home.kv = r.kv_bytes.value_or(KvBytesPerToken(r.shape, r.kv_element_bytes) *
                                static_cast<uint64_t>(r.context) * sequences);
  home.state = r.state_bytes.value_or(
      StateBytes(r.shape, r.state_element_bytes) * sequences);
  home.workspace = Workspace(r.nodes[0]);
  return plan;
}

absl::StatusOr<Plan> PlanWith(const Request& r,
                              const Deal& deal,
                              const std::vector<int32_t>& units) {
  ASSIGN_OR_RETURN(Plan plan, Begin(r, deal.local_layers));
  if (plan.remote_layers > 0) {
    plan.split = deal.split;
    if (deal.split == Split::kColumns) plan.unit = UnitColumns(r);
    const uint64_t unit = UnitBytes(r, plan, deal.split);
    for (size_t i = 1; i < r.nodes.size(); ++i) {
      Holding& holding = plan.nodes[i];
      holding.units = units[i - 1];
      if (holding.units == 0) continue;
      holding.workspace = Workspace(r.nodes[i]);
      holding.experts = unit * static_cast<uint64_t>(holding.units);
      if (holding.Used() > holding.memory) {
        return DoesNotFit(absl::StrCat("worker ", holding.node),
                          holding.Used(),
                          holding.memory);
      }
    }
  }
  Predict(r, plan);
  return plan;
}

absl::StatusOr<Plan> MakePlan(const Request& r) {
  ASSIGN_OR_RETURN(const Plan most, Begin(r, r.shape.num_hidden_layers));
  if (most.remote_layers > 0) {
    RETURN_IF_ERROR(CheckRoom(r, most, Room(r, most, Split::kExperts)));
  }
  std::optional<Plan> best;
  // Fewer local layers than fit pay off where the workers are much faster.
  const int32_t least = r.nodes.size() > 1 ? 0 : most.local_layers;
  for (int32_t local = most.local_layers; local >= least; --local) {
    ASSIGN_OR_RETURN(const Plan begin, Begin(r, local));
    for (const Split split : {Split::kColumns, Split::kExperts}) {
      std::vector<int32_t> dealt;
      if (begin.remote_layers > 0) {
        dealt = Shares(r, Room(r, begin, split), UnitsOf(r, split));
        // Coarse slices may not fit where whole experts do.
        if (std::accumulate(dealt.begin(), dealt.end(), 0) !=
            UnitsOf(r, split)) {
          continue;
        }
      }
      ASSIGN_OR_RETURN(Plan plan, PlanWith(r, {split, local}, dealt));
      if (best && best->step.Total() <= plan.step.Total()) continue;
      best = std::move(plan);
    }
  }
  return *best;
}

std::vector<double> DecodeByWorkers(const Request& request) {
  Request r = request;
  if (r.nodes.empty()) return {};
  // Fastest first; of equals the one with the nearest link.
  std::stable_sort(
      r.nodes.begin() + 1, r.nodes.end(), [](const Node& a, const Node& b) {
        if (a.bytes_per_s != b.bytes_per_s) {
          return a.bytes_per_s > b.bytes_per_s;
        }
        return a.link.round_trip_s < b.link.round_trip_s;
      });
  const std::vector<Node> all = r.nodes;
  std::vector<double> out;
  for (size_t count = 1; count <= all.size(); ++count) {
    r.nodes.assign(all.begin(), all.begin() + static_cast<int64_t>(count));
    const auto plan = MakePlan(r);
    out.push_back(plan.ok() ? plan->decode_tokens_per_s : 0);
  }
  return out;
}

}  // namespace conclave::planner
