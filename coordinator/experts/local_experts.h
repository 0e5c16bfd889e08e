// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/experts/experts.h"
#include "coordinator/experts/local_shards.h"
#include "coordinator/experts/open_work.h"
#include "coordinator/experts/plan.h"
#include "kernels/context.h"

namespace conclave::experts {

// All shards in this process: the twin of every other Experts. Who the
// placement says holds a shard does not matter here.
class LocalExperts final : public Experts {
 public:
  // `shards` must hold every shard of the placement (NotFound names the first
  // that is missing) and outlives this, as does `pool`.
  static absl::StatusOr<std::unique_ptr<LocalExperts>> Create(
      Placement placement,
      const ExpertShape& shape,
      const LocalShards* shards,
      kernels::Backend backend,
      ThreadPool* pool,
      kernels::Activations activations = kernels::Activations::kF32);

  void BeginStep(int32_t micro_batches) override;
  absl::StatusOr<Ticket> Start(LayerId layer,
                               std::span<const float> x,
                               const Routing& routing) override;
  absl::Status Finish(Ticket ticket, std::span<float> out) override;

 private:
  LocalExperts(PlacementIndex index,
               const LocalShards* shards,
               const kernels::Context& context);

  PlacementIndex index_;
  const LocalShards* shards_;
  kernels::Workspace workspace_;
  kernels::Context context_;

  struct Pending {
    LayerId layer{};
    std::span<const float> x;
    DispatchPlan plan;
  };
  OpenWork<Pending> open_;
};

}  // namespace conclave::experts
