// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/local_shards.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/experts/rows.h"

namespace conclave::experts {

absl::StatusOr<std::unique_ptr<LocalShards>> LocalShards::Load(
    const checkpoint::Checkpoint& checkpoint,
    const Placement& placement,
    std::optional<WorkerId> holder,
    const checkpoint::LoadProgressFn& progress) {
  std::vector<Shard> shards;
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    if (holder.has_value() && placement.holder[i] != *holder) continue;
    shards.push_back(placement.shards[i]);
  }
  ASSIGN_OR_RETURN(
      std::vector<checkpoint::ShardWeights> weights,
      checkpoint::LoadShards(checkpoint, shards, limits::kReaders, progress));
  return std::make_unique<LocalShards>(std::move(weights),
                                       checkpoint.config().hidden_size);
}

LocalShards::LocalShards(std::vector<checkpoint::ShardWeights> weights,
                         int32_t hidden)
    : weights_(std::move(weights)), hidden_(hidden) {
  std::sort(weights_.begin(), weights_.end(), [](const auto& a, const auto& b) {
    return a.shard.id < b.shard.id;
  });
}

const checkpoint::ShardWeights* LocalShards::Find(ShardId shard) const {
  const auto it = std::lower_bound(
      weights_.begin(),
      weights_.end(),
      shard,
      [](const auto& held, ShardId id) { return held.shard.id < id; });
  return it == weights_.end() || it->shard.id != shard ? nullptr : &*it;
}

bool LocalShards::Holds(ShardId shard) const { return Find(shard) != nullptr; }

uint64_t LocalShards::bytes() const {
  uint64_t bytes = 0;
  for (const checkpoint::ShardWeights& shard : weights_) bytes += shard.bytes;
  return bytes;
}

absl::Status LocalShards::Compute(const kernels::Context& context,
                                  LayerId layer,
                                  const HolderPart& part,
                                  std::span<const float> x,
                                  std::vector<Partial>* partials) const {
  const size_t size = part.tokens.size() * hidden_;
  std::span<const float> rows = x;
  if (x.size() != size) {  // else the part has every row of the step
    std::span<float> gathered = context.workspace->Floats(size);
    GatherRows(x, part.tokens, hidden_, gathered);
    rows = gathered;
  }
  for (const ShardWork& work : part.shards) {
    const checkpoint::ShardWeights* shard = Find(work.shard);
    CONCLAVE_CHECK(shard != nullptr);
    std::span<float> sum = context.workspace->Floats(size);
    RETURN_IF_ERROR(kernels::ExpertFfn(
        context,
        kernels::ViewOf(
            shard->layers[static_cast<size_t>(Index(layer))].Stacked()),
        {.slice = work.slice, .row = work.row, .weight = work.weight},
        rows,
        static_cast<int64_t>(part.tokens.size()),
        sum));
    partials->push_back({work.shard, part.tokens, sum});
  }
  return absl::OkStatus();
}

}  // namespace conclave::experts
