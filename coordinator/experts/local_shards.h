// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/shard_weights.h"
#include "coordinator/experts/combine.h"
#include "coordinator/experts/plan.h"
#include "kernels/context.h"
#include "kernels/moe.h"

namespace conclave::experts {

// Shards whose weights lie in this process. Immutable.
class LocalShards {
 public:
  // Loads the shards of `holder`, or all of them if unset.
  static absl::StatusOr<std::unique_ptr<LocalShards>> Load(
      const checkpoint::Checkpoint& checkpoint,
      const Placement& placement,
      std::optional<WorkerId> holder,
      const checkpoint::LoadProgressFn& progress);

  LocalShards(std::vector<checkpoint::ShardWeights> weights, int32_t hidden);

  bool Holds(ShardId shard) const;
  uint64_t bytes() const;

  // Adds the part's partial sums to `partials`. x is [rows of the step,
  // hidden]. What they point to is the part and context.workspace: the caller
  // holds a Scope and the part until they are combined.
  absl::Status Compute(const kernels::Context& context,
                       LayerId layer,
                       const HolderPart& part,
                       std::span<const float> x,
                       std::vector<Partial>* partials) const;

 private:
  const checkpoint::ShardWeights* Find(ShardId shard) const;

  std::vector<checkpoint::ShardWeights> weights_;  // ascending shard
  int32_t hidden_;
};

}  // namespace conclave::experts
