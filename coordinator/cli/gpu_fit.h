// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/memory.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/model/decoder.h"
#include "coordinator/model/device_needs.h"
#include "kernels/device_attention.h"
#include "kernels/device_gdn.h"

namespace conclave::cli {

// What a GPU of this memory holds or keeps free, whatever its keys and values
// take.
uint64_t FixedBytes(const model::DeviceNeeds& needs,
                    const v1::Limits& limits,
                    const checkpoint::ModelConfig& config,
                    const MemoryState& memory);

// Sizes of the caches on a GPU with this memory: keys and values get
// limits.kv_tokens, else what weights, arrays and states leave, but 2 % of the
// memory (1.5 GB at most) for CUDA itself. ResourceExhausted, with what is
// needed for what and what there is, where not even one context fits.
absl::StatusOr<model::StateSizes> FitOnGpu(
    const model::DeviceNeeds& needs,
    const v1::Limits& limits,
    const checkpoint::ModelConfig& config,
    const std::string& gpu,
    const MemoryState& memory);

// What the file says of the caches' numbers.
kernels::KvDType KvDTypeOf(const v1::ClusterConfig& config);
kernels::GdnDType GdnDTypeOf(const v1::ClusterConfig& config);

}  // namespace conclave::cli
