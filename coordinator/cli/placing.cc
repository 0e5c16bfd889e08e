// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/placing.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/shard_weights.h"
#include "common/status_macros.h"
#include "coordinator/cli/plan_request.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/engine.h"
#include "coordinator/planner/plan.h"

namespace conclave::cli {
namespace {

bool StatesShares(const v1::ClusterConfig& config) {
  const v1::Placement& p = config.placement();
  return p.split() == "columns" || p.shards() != 0 ||
         p.coordinator_share() != 0 ||
         std::any_of(config.workers().begin(),
                     config.workers().end(),
                     [](const v1::Worker& w) { return w.share() != 1; });
}

bool SaysWhatNodesAre(const v1::ClusterConfig& config) {
  return !config.links().empty() ||
         (!config.coordinator().device().empty() &&
          std::none_of(config.workers().begin(),
                       config.workers().end(),
                       [](const v1::Worker& w) { return w.device().empty(); }));
}

absl::StatusOr<Placing> Solve(const v1::ClusterConfig& config,
                              const checkpoint::Checkpoint& checkpoint,
                              const CacheBytes& caches) {
  PlanRequest asked;
  planner::Request& r = asked.request;
  RETURN_IF_ERROR(DescribeModel(checkpoint, &r));
  RETURN_IF_ERROR(UseNodes(config, config.links(), &asked));
  r.kv_bytes = caches.kv;
  r.state_bytes = caches.state;
  ASSIGN_OR_RETURN(const planner::Plan plan, planner::MakePlan(r));
  Placing out;
  out.placement = planner::PlacementOf(r, plan);
  out.how = absl::StrCat("by the solver: experts of ",
                         plan.local_layers,
                         " layers on the coordinator");
  if (plan.remote_layers > 0) {
    absl::StrAppend(&out.how,
                    ", of ",
                    plan.remote_layers,
                    " on workers (split by ",
                    std::string(planner::Name(plan.split)),
                    ")");
  }
  RETURN_IF_ERROR(Validate(out.placement, checkpoint.config().expert_shape()));
  return out;
}

}  // namespace

CacheBytes CachesOf(const model::StateSizes& sizes,
                    const checkpoint::ModelConfig& config) {
  const model::StateBytes bytes = model::StateBytesOf(config);
  return {
      .kv = static_cast<uint64_t>(sizes.kv_blocks * bytes.per_kv_block),
      .state = static_cast<uint64_t>(sizes.state_slots * bytes.per_state_slot)};
}

bool UsesSolver(const v1::ClusterConfig& config) {
  return config.workers_size() > 0 &&
         config.placement().explicit__size() == 0 && !StatesShares(config) &&
         SaysWhatNodesAre(config);
}

absl::StatusOr<Placing> DecidePlacement(
    const v1::ClusterConfig& config,
    const checkpoint::Checkpoint& checkpoint,
    const CacheBytes& caches) {
  if (UsesSolver(config)) return Solve(config, checkpoint, caches);
  const bool listed = config.placement().explicit__size() > 0;
  Placing out;
  ASSIGN_OR_RETURN(
      out.placement,
      cluster::MakePlacement(config, checkpoint.config().expert_shape()));
  out.how = config.workers_size() == 0 ? "all on this machine"
            : listed                   ? "as the file lists it"
                                       : "by share";
  return out;
}

std::vector<bool> OwnLayers(const Placement& placement, int32_t layers) {
  std::vector<bool> out(static_cast<size_t>(layers), true);
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    if (placement.holder[i] == kCoordinator) continue;
    for (const Slice& slice : placement.shards[i].slices) {
      out[static_cast<size_t>(Index(slice.layer))] = false;
    }
  }
  return out;
}

Placement WithoutLayers(Placement placement, const std::vector<bool>& layers) {
  if (layers.empty()) return placement;
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    if (placement.holder[i] != kCoordinator) continue;
    std::erase_if(placement.shards[i].slices, [&](const Slice& slice) {
      return layers[static_cast<size_t>(Index(slice.layer))];
    });
  }
  return placement;
}

absl::Status CheckFits(const checkpoint::Checkpoint& checkpoint,
                       const Placement& placement,
                       const CacheBytes& caches,
                       const MemoryState& memory) {
  ASSIGN_OR_RETURN(const planner::HeldWeights held,
                   planner::HeldOf(checkpoint));
  const uint64_t dense = held.bytes.embedding + held.bytes.dense;
  uint64_t experts = 0;
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    if (placement.holder[i] != kCoordinator) continue;
    ASSIGN_OR_RETURN(const uint64_t bytes,
                     checkpoint::ShardBytes(checkpoint, placement.shards[i]));
    experts += bytes;
  }
  const uint64_t needed = dense + experts + caches.kv + caches.state;
  if (memory.total_bytes == 0 || needed <= memory.free_bytes) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("the coordinator needs ",
                   Gigabytes(needed),
                   ", ",
                   Gigabytes(memory.free_bytes),
                   " free (experts ",
                   Gigabytes(experts),
                   ", other weights ",
                   Gigabytes(dense),
                   ", keys and values ",
                   Gigabytes(caches.kv),
                   ", states ",
                   Gigabytes(caches.state),
                   "); give workers more of the experts, take a format with "
                   "fewer bits, or lower limits.max_context, max_sequences or "
                   "kv_tokens"));
}

}  // namespace conclave::cli
