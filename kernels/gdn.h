// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/context.h"
#include "kernels/step_batch.h"
#include "kernels/weight.h"

namespace conclave::kernels {

// Gated DeltaNet, docs/qwen3.5-moe 3.3 (Yang et al., arXiv 2412.06464).
struct GdnShape {
  int32_t hidden = 0;
  int32_t key_heads = 0;
  int32_t value_heads = 0;  // a multiple of key_heads
  int32_t key_dim = 0;      // per head
  int32_t value_dim = 0;    // per head
  int32_t conv_kernel = 0;  // taps, 4
  float eps = 1e-6f;
  // q | k | v, in this order
  int32_t channels() const {
    return 2 * key_heads * key_dim + value_heads * value_dim;
  }
};

struct GdnWeights {
  WeightView in_qkv;               // [channels, hidden]
  WeightView in_z;                 // [value_heads * value_dim, hidden]
  WeightView in_b;                 // [value_heads, hidden]
  WeightView in_a;                 // [value_heads, hidden]
  WeightView out;                  // [hidden, value_heads * value_dim]
  std::span<const float> conv;     // [channels, conv_kernel], last = current
  std::span<const float> a_log;    // [value_heads]
  std::span<const float> dt_bias;  // [value_heads]
  std::span<const float> norm;     // [value_dim], plain weight
};

// The states of one layer, all slots. Written only at state_slots_out.
struct GdnState {
  // [slots, conv_kernel - 1, channels]: the last pre-convolution rows, oldest
  // first, zeros before the first token.
  std::span<float> conv;
  // [slots, value_heads, key_dim, value_dim], float32.
  std::span<float> recurrent;
};

// out = GatedDeltaNet(u), u and out [batch.rows, hidden]. Sequences with cells
// take the chunked form, the others the recurrent one.
absl::Status GdnMixer(const Context& context,
                      const GdnShape& shape,
                      const GdnWeights& weights,
                      const GdnState& state,
                      const StepBatch& batch,
                      std::span<const float> u,
                      std::span<float> out);

}  // namespace conclave::kernels
