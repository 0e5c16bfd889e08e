// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/link_layers.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"

namespace conclave::experts {
namespace {

bool HasLayer(const Shard& shard, int32_t layer) {
  return std::any_of(
      shard.slices.begin(), shard.slices.end(), [layer](const Slice& slice) {
        return Index(slice.layer) == layer;
      });
}

}  // namespace

absl::StatusOr<LinkLayers> LinkLayers::Create(
    const Placement& placement,
    const ExpertShape& shape,
    const std::vector<bool>& routed_here) {
  LinkLayers out;
  out.position_.resize(static_cast<size_t>(shape.layers));
  std::map<WorkerId, int32_t> layers_of;
  for (int32_t l = 0; l < shape.layers; ++l) {
    const auto at = static_cast<size_t>(l);
    if (at < routed_here.size() && routed_here[at]) continue;
    Layer layer{.index = l, .holders = {}, .shards = {}};
    for (size_t s = 0; s < placement.shards.size(); ++s) {
      if (!HasLayer(placement.shards[s], l)) continue;
      if (placement.holder[s] == kCoordinator) {
        return absl::InvalidArgumentError(absl::StrCat(
            "exchange.over: nccl: the coordinator holds a part of layer ",
            l,
            "; give it whole layers (placement.explicit) or none, or use "
            "exchange.over: grpc"));
      }
      layer.shards.push_back(placement.holder[s]);
    }
    std::vector<WorkerId> workers = layer.shards;
    std::sort(workers.begin(), workers.end());
    workers.erase(std::unique(workers.begin(), workers.end()), workers.end());
    for (const WorkerId worker : workers) {
      layer.holders.push_back({worker, layers_of[worker]++});
    }
    out.shards_max_ = std::max(out.shards_max_, layer.shards.size());
    out.position_[at] = out.layers_.size();
    out.layers_.push_back(std::move(layer));
  }
  if (out.layers_.empty()) {
    return absl::InvalidArgumentError(
        "exchange.over: nccl: the coordinator holds all layers; take the "
        "workers out of the file or give them some");
  }
  return out;
}

}  // namespace conclave::experts
