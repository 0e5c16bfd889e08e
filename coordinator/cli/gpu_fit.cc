// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/gpu_fit.h"

#include "absl/strings/str_cat.h"
#include "coordinator/engine.h"
#include "kernels/device_choice.h"

namespace conclave::cli {

absl::StatusOr<model::StateSizes> FitOnGpu(
    const model::DeviceNeeds& needs,
    const v1::Limits& limits,
    const checkpoint::ModelConfig& config,
    const std::string& gpu,
    const MemoryState& memory) {
  const uint64_t reserve = kernels::DeviceReserve(memory.total_bytes);
  const auto slots =
      static_cast<uint64_t>(CachesFor(limits, config, {}).state_slots);
  const uint64_t states =
      slots * static_cast<uint64_t>(needs.each.per_state_slot);
  const auto block = static_cast<uint64_t>(needs.each.per_kv_block);
  // One block more, for the rows that fill a recorded step up.
  const uint64_t fixed =
      needs.weights + needs.arrays + states + reserve + block;
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
                   Gigabytes(states),
                   ", arrays of a step ",
                   Gigabytes(needs.arrays),
                   ", kept free ",
                   Gigabytes(reserve),
                   "); take a format with fewer bits, lower limits.kv_tokens, "
                   "max_context, max_sequences or step_tokens, set "
                   "coordinator.kv_dtype to fp8 or coordinator.gdn_state to "
                   "bf16, or use backend cpu"));
}

}  // namespace conclave::cli
