// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/memory.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/model/decoder.h"
#include "coordinator/model/device_weights.h"
#include "kernels/device_choice.h"
#include "kernels/device_queue.h"

// What each GPU of coordinator.gpus, or coordinator.gpu alone, is to hold, and
// whether it fits, before any weight is read.
namespace conclave::cli {

kernels::KvDType KvDTypeOf(const v1::Coordinator& coordinator);
kernels::GdnDType GdnDTypeOf(const v1::Coordinator& coordinator);

struct GpuPlanRequest {
  const v1::ClusterConfig* config = nullptr;
  const checkpoint::Checkpoint* checkpoint = nullptr;
  kernels::Activations activations = kernels::Activations::kF32;
  uint64_t link_bytes = 0;  // of rows on their way to workers and back
  model::RoutedHere here = {};
};

struct GpuPlan {
  model::StateSizes caches;
  std::string gpus;             // by name, "GPU 0 (NVIDIA H200) and ..."
  std::vector<int32_t> shares;  // as RankConfig has them
  std::string uneven;           // DescribeShares
};

// A GPU, in rank order; its device decides sizes of arrays.
struct GpuPlace {
  std::string name;
  MemoryState memory;
  std::unique_ptr<kernels::DeviceQueue> queue;
};

// coordinator.group_shares, else the same for all ranks, but in lone form by
// memory (group_shares.h): the cache wanted there is limits.kv_tokens, else one
// context. The smallest caches of those ranks that have any. Errors as
// FitOnGpu's, of the first GPU that is too small, and as CutFor's.
absl::StatusOr<GpuPlan> PlanOn(std::span<const GpuPlace> places,
                               const GpuPlanRequest& request);

// On the GPUs that `list` tells of.
absl::StatusOr<GpuPlan> PlanGpus(const kernels::ListGpusFn& list,
                                 const GpuPlanRequest& request);

}  // namespace conclave::cli
