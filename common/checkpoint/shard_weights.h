// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/slice_part.h"
#include "common/slices.h"
#include "common/stacked_experts.h"

namespace conclave::checkpoint {

// One projection of a shard's slices in one layer, one after another.
struct StackedWeight {
  WeightLayout each;  // of one slice
  Buffer data, scales, biases;

  StoredWeight View() const;
  WeightSpans Part(int32_t slice);
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

  // Memory of shard.slices[slice].
  SliceSpans Part(size_t slice);
};

// Bytes that LoadShard will hold.
absl::StatusOr<uint64_t> ShardBytes(const Checkpoint& checkpoint,
                                    const Shard& shard);

// Memory for a shard whose slices lie as told, [slices]; not yet touched.
// InvalidArgument names a slice that is no part of the shape, breaks the order
// or differs from its layer's other slices.
absl::StatusOr<ShardWeights> RoomFor(const Shard& shard,
                                     std::span<const SliceLayout> layouts,
                                     const ExpertShape& shape);

using LoadProgressFn =
    std::function<void(uint64_t bytes_done, uint64_t bytes_total)>;

// Loads exactly the bytes of the shards' slices into memory of its own, in
// `threads` threads; no page of the checkpoint stays mapped for it. Accepts
// fused and per-expert experts. `progress` (may be null) is called after every
// slice, by one thread at a time.
absl::StatusOr<std::vector<ShardWeights>> LoadShards(
    const Checkpoint& checkpoint,
    std::span<const Shard> shards,
    int32_t threads,
    const LoadProgressFn& progress);

// One shard, in this thread.
absl::StatusOr<ShardWeights> LoadShard(const Checkpoint& checkpoint,
                                       const Shard& shard,
                                       const LoadProgressFn& progress);

}  // namespace conclave::checkpoint
