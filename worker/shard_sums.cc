// SPDX-License-Identifier: Apache-2.0
#include "worker/shard_sums.h"

#include <algorithm>
#include <cstring>

#include "common/bf16.h"

namespace conclave::worker {

void WidenRow(const ShardWork& work, int32_t row, std::span<float> to) {
  const auto hidden = static_cast<size_t>(work.hidden);
  const std::byte* from =
      work.x.data() + static_cast<size_t>(row) * hidden * SizeOf(work.dtype);
  if (work.dtype == DType::kF32) {
    std::memcpy(to.data(), from, hidden * sizeof(float));
    return;
  }
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  std::transform(bits, bits + hidden, to.begin(), FromBf16);
}

HostShardSums::HostShardSums(kernels::Backend backend, ThreadPool* pool)
    : context_{.backend = backend, .pool = pool, .workspace = &workspace_} {}

absl::Status HostShardSums::Sum(const ShardWork& work, std::span<float> out) {
  const kernels::Workspace::Scope scope(&workspace_);
  const auto hidden = static_cast<size_t>(work.hidden);
  const std::span<float> compact = workspace_.Floats(work.rows.size() * hidden);
  for (size_t i = 0; i < work.rows.size(); ++i) {
    WidenRow(work, work.rows[i], compact.subspan(i * hidden, hidden));
  }
  context_.activations = work.activations;
  return kernels::ExpertFfn(
      context_,
      kernels::ViewOf(work.shard->weights.layers[work.layer].Stacked()),
      work.entries,
      compact,
      static_cast<int64_t>(work.rows.size()),
      out);
}

}  // namespace conclave::worker
