// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/slices.h"

namespace conclave::experts {

// Which workers take part in which layers of a link, from the placement alone:
// both ends of each exchange come from it.
class LinkLayers {
 public:
  struct Holder {
    WorkerId worker{};
    int32_t ordinal = 0;  // of the layer among those of this worker
  };
  struct Layer {
    int32_t index = 0;
    std::vector<Holder> holders;   // ascending
    std::vector<WorkerId> shards;  // holder of each shard, ascending shards
  };

  // routed_here: [layers], those that need no worker. InvalidArgument names a
  // layer of which the coordinator holds a part, or of which nobody holds one.
  static absl::StatusOr<LinkLayers> Create(
      const Placement& placement,
      const ExpertShape& shape,
      const std::vector<bool>& routed_here);

  // Those that are not here, ascending; at least one.
  const std::vector<Layer>& elsewhere() const { return layers_; }
  // One of them.
  const Layer& at(LayerId layer) const {
    return layers_[position_[static_cast<size_t>(Index(layer))]];
  }
  // Of the layer that has most.
  size_t shards_max() const { return shards_max_; }

 private:
  std::vector<Layer> layers_;
  std::vector<size_t> position_;  // [layers], in layers_
  size_t shards_max_ = 0;
};

}  // namespace conclave::experts
