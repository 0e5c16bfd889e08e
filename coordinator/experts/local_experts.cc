// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/local_experts.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/experts/combine.h"

namespace conclave::experts {

absl::StatusOr<std::unique_ptr<LocalExperts>> LocalExperts::Create(
    Placement placement,
    const ExpertShape& shape,
    const LocalShards* shards,
    kernels::Backend backend,
    ThreadPool* pool,
    kernels::Activations activations) {
  std::fill(placement.holder.begin(), placement.holder.end(), kCoordinator);
  for (const Shard& shard : placement.shards) {
    if (shards->Holds(shard.id)) continue;
    return absl::NotFoundError(absl::StrCat(
        "experts: shard ", Index(shard.id), " is not loaded in this process"));
  }
  ASSIGN_OR_RETURN(PlacementIndex index,
                   PlacementIndex::Create(std::move(placement), shape));
  return std::unique_ptr<LocalExperts>(new LocalExperts(
      std::move(index),
      shards,
      {.backend = backend, .pool = pool, .activations = activations}));
}

LocalExperts::LocalExperts(PlacementIndex index,
                           const LocalShards* shards,
                           const kernels::Context& context)
    : index_(std::move(index)), shards_(shards), context_(context) {
  context_.workspace = &workspace_;
}

void LocalExperts::BeginStep(int32_t micro_batches) {
  open_.BeginStep(micro_batches);
}

absl::StatusOr<Ticket> LocalExperts::Start(LayerId layer,
                                           std::span<const float> x,
                                           const Routing& routing) {
  RETURN_IF_ERROR(open_.CheckFree(routing.micro_batch));
  Pending work{.layer = layer, .x = x, .plan = {}};
  ASSIGN_OR_RETURN(work.plan, BuildPlan(routing, layer, index_));
  return open_.Add(routing.micro_batch, std::move(work));
}

absl::Status LocalExperts::Finish(Ticket ticket, std::span<float> out) {
  Pending* open = open_.Find(ticket);
  if (open == nullptr) return open_.NotOpen();
  const Pending work = std::move(*open);
  open_.Close(open);
  kernels::Workspace::Scope scope(&workspace_);
  std::vector<Partial> partials;
  for (const HolderPart& part : work.plan.parts) {
    RETURN_IF_ERROR(
        shards_->Compute(context_, work.layer, part, work.x, &partials));
  }
  Combine(std::move(partials), index_.shape().hidden, out);
  return absl::OkStatus();
}

}  // namespace conclave::experts
