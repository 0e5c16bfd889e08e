// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/memory.h"
#include "common/slices.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/model/decoder.h"

namespace conclave::cli {

// Bytes that the coordinator's caches will take.
struct CacheBytes {
  uint64_t kv = 0;
  uint64_t state = 0;
};

// Those of caches of these sizes.
CacheBytes CachesOf(const model::StateSizes& sizes,
                    const checkpoint::ModelConfig& config);

struct Placing {
  Placement placement;
  std::string how;  // "as the file lists it", "by share", "by the solver: .."
};

// Whether the planner places the experts of this file: see below.
bool UsesSolver(const v1::ClusterConfig& config);

// Who holds what. What the file states wins: `placement.explicit`, then split,
// shards and shares (cluster/placement.h). A file that states none of it but
// says of every node what it is (`device:` or `links:`) gets the planner's
// placement; else shares are equal. ResourceExhausted: the planner finds no
// placement that fits.
absl::StatusOr<Placing> DecidePlacement(
    const v1::ClusterConfig& config,
    const checkpoint::Checkpoint& checkpoint,
    const CacheBytes& caches);

// Per layer, whether all its experts are the coordinator's.
std::vector<bool> OwnLayers(const Placement& placement, int32_t layers);
// The same shards without the coordinator's slices of those layers.
Placement WithoutLayers(Placement placement, const std::vector<bool>& layers);

// ResourceExhausted, with what is needed for what and what there is, where the
// coordinator's part does not fit into `memory`.
absl::Status CheckFits(const checkpoint::Checkpoint& checkpoint,
                       const Placement& placement,
                       const CacheBytes& caches,
                       const MemoryState& memory);

}  // namespace conclave::cli
