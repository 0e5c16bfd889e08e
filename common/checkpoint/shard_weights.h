// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "common/checkpoint/checkpoint.h"
#include "common/slices.h"
#include "common/stacked_experts.h"

namespace conclave::checkpoint {

// One projection of a shard's slices in one layer, one after another.
struct StackedWeight {
  WeightLayout each;  // of one slice
  Buffer data, scales, biases;

  StoredWeight View() const;
  uint64_t bytes() const { return data.size() + scales.size() + biases.size(); }
};

// The stacked weights of one shard in one layer, as the checkpoint stores
// them.
struct ShardLayer {
  int32_t slices = 0;            // local indices 0 .. slices - 1
  int32_t width = 0;             // columns of each slice
  std::vector<ExpertId> expert;  // [slices], ascending
  StackedWeight gate, up;        // each [width, hidden]
  StackedWeight down;            // each [hidden, width]

  StackedExperts Stacked() const;
};

// All layers of one shard; layers without a slice have slices == 0.
struct ShardWeights {
  Shard shard;
  std::vector<ShardLayer> layers;  // [layers]
  uint64_t bytes = 0;
};

// Bytes that LoadShard will hold.
absl::StatusOr<uint64_t> ShardBytes(const Checkpoint& checkpoint,
                                    const Shard& shard);

using LoadProgressFn =
    std::function<void(uint64_t bytes_done, uint64_t bytes_total)>;

// Loads exactly the bytes of the shard's slices into memory of its own; no
// page of the checkpoint stays mapped for it. Accepts fused and per-expert
// experts. `progress` (may be null) is called after every tensor.
absl::StatusOr<ShardWeights> LoadShard(const Checkpoint& checkpoint,
                                       const Shard& shard,
                                       const LoadProgressFn& progress);

}  // namespace conclave::checkpoint
