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

void LocalExperts::BeginStep() { pending_ = false; }

absl::StatusOr<Ticket> LocalExperts::Start(LayerId layer,
                                           std::span<const float> x,
                                           const Routing& routing) {
  if (pending_) {
    return absl::FailedPreconditionError(
        "experts: Start was called before Finish of the work before");
  }
  ASSIGN_OR_RETURN(plan_, BuildPlan(routing, layer, index_));
  layer_ = layer;
  x_ = x;
  pending_ = true;
  return Ticket{++ticket_};
}

absl::Status LocalExperts::Finish(Ticket ticket, std::span<float> out) {
  if (!pending_ || ticket.id != ticket_) {
    return absl::FailedPreconditionError(
        "experts: Finish was called with a ticket that is not open");
  }
  pending_ = false;
  kernels::Workspace::Scope scope(&workspace_);
  std::vector<Partial> partials;
  for (const HolderPart& part : plan_.parts) {
    RETURN_IF_ERROR(shards_->Compute(context_, layer_, part, x_, &partials));
  }
  Combine(std::move(partials), index_.shape().hidden, out);
  return absl::OkStatus();
}

}  // namespace conclave::experts
