// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace conclave {

// Indexes of different things have different types, so that they cannot be
// mixed up. Convert with static_cast<int32_t>(id) where arithmetic is meant.
enum class LayerId : int32_t {};   // MTP layers are L, L + 1, ...
enum class ExpertId : int32_t {};  // 0 .. num_experts - 1, per layer
enum class ShardId : int32_t {};   // position in the list of shards
enum class WorkerId : int32_t {};  // position in ClusterConfig.workers
enum class RequestId : uint64_t {};

// The coordinator as a holder of experts.
inline constexpr WorkerId kCoordinator{-1};

constexpr int32_t Index(LayerId id) { return static_cast<int32_t>(id); }
constexpr int32_t Index(ExpertId id) { return static_cast<int32_t>(id); }
constexpr int32_t Index(ShardId id) { return static_cast<int32_t>(id); }
constexpr int32_t Index(WorkerId id) { return static_cast<int32_t>(id); }

}  // namespace conclave
