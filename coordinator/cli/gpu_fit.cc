// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/gpu_fit.h"

#include "absl/strings/str_cat.h"
#include "coordinator/engine.h"
#include "kernels/device_choice.h"

namespace conclave::cli {

namespace {

uint64_t StatesOf(const model::DeviceNeeds& needs,
                  const v1::Limits& limits,
                  const checkpoint::ModelConfig& config) {
  const model::StateSizes least = CachesFor(limits, config, {});
  return static_cast<uint64_t>(least.state_slots) *
         static_cast<uint64_t>(needs.each.per_state_slot);
}

}  // namespace

uint64_t FixedBytes(const model::DeviceNeeds& needs,
                    const v1::Limits& limits,
                    const checkpoint::ModelConfig& config,
                    const MemoryState& memory) {
  // One block more, for the rows that fill a recorded step up.
  return needs.weights + needs.arrays + StatesOf(needs, limits, config) +
         kernels::DeviceReserve(memory.total_bytes) +
         static_cast<uint64_t>(needs.each.per_kv_block);
}

absl::StatusOr<model::StateSizes> FitOnGpu(
    const model::DeviceNeeds& needs,
    const v1::Limits& limits,
    const checkpoint::ModelConfig& config,
    const std::string& gpu,
    const MemoryState& memory) {
  const auto block = static_cast<uint64_t>(needs.each.per_kv_block);
  const uint64_t fixed = FixedBytes(needs, limits, config, memory);
  const uint64_t left =
      memory.free_bytes > fixed ? memory.free_bytes - fixed : 0;
  const model::StateSizes sizes =
      CachesFor(limits, config, {.each = needs.each, .bytes = left});
  const uint64_t kv = static_cast<uint64_t>(sizes.kv_blocks) * block;
  if (kv <= left && fixed <= memory.free_bytes) return sizes;
  return absl::ResourceExhaustedError(
      absl::StrCat("needs ",
                   Gigabytes(fixed + kv),
                   " on ",
                   gpu,
                   ", ",
                   Gigabytes(memory.free_bytes),
                   " free (weights ",
                   Gigabytes(needs.weights),
                   ", keys and values ",
                   Gigabytes(kv + block),
                   ", states ",
                   Gigabytes(StatesOf(needs, limits, config)),
                   ", arrays of a step ",
                   Gigabytes(needs.arrays),
                   ", kept free ",
                   Gigabytes(kernels::DeviceReserve(memory.total_bytes)),
                   "); take a format with fewer bits, lower limits.kv_tokens, "
                   "max_context, max_sequences or step_tokens, set "
                   "coordinator.kv_dtype to fp8 or coordinator.gdn_state to "
                   "bf16, or use backend cpu"));
}

kernels::KvDType KvDTypeOf(const v1::ClusterConfig& config) {
  return config.coordinator().kv_dtype() == "fp8" ? kernels::KvDType::kFp8
                                                  : kernels::KvDType::kBF16;
}

kernels::GdnDType GdnDTypeOf(const v1::ClusterConfig& config) {
  return config.coordinator().gdn_state() == "bf16" ? kernels::GdnDType::kBF16
                                                    : kernels::GdnDType::kF32;
}

}  // namespace conclave::cli
