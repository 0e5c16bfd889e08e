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

// The stacked weights of one shard in one layer, in the checkpoint's dtype.
struct ShardLayer {
  int32_t slices = 0;            // local indices 0 .. slices - 1
  int32_t width = 0;             // columns of each slice
  std::vector<ExpertId> expert;  // [slices], ascending
  DType dtype = DType::kBF16;
  Buffer gate_up;  // [slices, 2, width, hidden]: gate rows, then up rows
  Buffer down;     // [slices, hidden, width]
  // kF8E4M3 only, bf16: a scale per block of up_block or down_block rows (128,
  // or less where a slice's rows end earlier) and 128 columns.
  Buffer gate_up_scales;
  Buffer down_scales;
  int32_t up_block = 0;
  int32_t down_block = 0;

  StackedExperts Stacked(int32_t hidden) const;
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
