// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/context.h"
#include "kernels/step_batch.h"
#include "kernels/weight.h"

namespace conclave::kernels {

// Gated full attention, docs/qwen3.5-moe 3.4.
struct AttentionShape {
  int32_t hidden = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;  // divides heads; consecutive heads share one
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;  // first dims of a head, pairs (i, i + rotary_dim/2)
  double rope_theta = 1e7;
  float eps = 1e-6f;
  int32_t block_tokens = 64;  // positions per KV block
};

struct AttentionWeights {
  WeightView q;  // [heads * 2 * head_dim, hidden], per head query | gate
  WeightView k;  // [kv_heads * head_dim, hidden]
  WeightView v;  // [kv_heads * head_dim, hidden]
  WeightView o;  // [hidden, heads * head_dim]
  std::span<const float> q_norm;  // [head_dim], "+1" already added
  std::span<const float> k_norm;  // [head_dim], "+1" already added
};

// Keys (after norm and RoPE) and values of one layer:
// [blocks, 2 (K, V), kv_heads, block_tokens, head_dim], float32.
struct KvCache {
  std::span<float> data;
};

// Appends the new rows' keys and values at the sequences' positions, then
// out = GatedAttention(u), u and out [batch.rows, hidden]; causal.
absl::Status GatedAttention(const Context& context,
                            const AttentionShape& shape,
                            const AttentionWeights& weights,
                            const KvCache& cache,
                            const StepBatch& batch,
                            std::span<const float> u,
                            std::span<float> out);

}  // namespace conclave::kernels
