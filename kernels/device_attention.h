// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "kernels/device_step.h"

namespace conclave::kernels {

enum class KvDType : uint8_t { kF32, kBF16, kFp8 };  // FP8: e4m3, no scale

// Keys (after norm and RoPE) and values of one layer. A block holds keys
// [kv_heads, 64, head_dim], then values [kv_heads, head_dim, 64]: the way
// products read them.
struct DeviceKv {
  void* data = nullptr;
  KvDType dtype = KvDType::kBF16;
};

struct DeviceAttentionWeights {
  const float* q_norm = nullptr;  // [head_dim], "+1" already added
  const float* k_norm = nullptr;  // [head_dim]
};

// Gated attention between its projections (kernels/attention.h): norms, RoPE,
// appends keys and values, attends causally, applies the gate. head_dim is
// 256, block_tokens 64, rotary_dim even, heads / kv_heads up to 16: others are
// InvalidArgument. No sequence of a step is empty, rows of one have ascending
// positions without gaps. projected: [rows, heads * 2 * head_dim + 2 * kv_heads
// * head_dim], in the order q and gate per head | k | v, float32. scratch:
// AttentionScratchFloats. y: [rows, heads * head_dim].
// With kF32 everything is float32; otherwise queries, keys, values and
// probabilities are rounded to bf16 (FP8: keys and values to e4m3, queries and
// probabilities to f16) and sums are float32. A row's bits depend on other rows
// only through the number of parts that contexts are cut into, through whether
// any sequence has several rows (rows_max), and then through where the row's
// sequence begins in the step.
// Pointers are 16-byte aligned.
absl::Status DeviceAttention(DeviceQueue* queue,
                             const AttentionShape& shape,
                             const DeviceAttentionWeights& weights,
                             const DeviceKv& cache,
                             const DeviceStep& step,
                             const float* projected,
                             float* scratch,
                             const DeviceRows& y);

// Of any step of up to `rows` rows over up to `sequences` sequences.
size_t AttentionScratchFloats(const DeviceQueue& queue,
                              const AttentionShape& shape,
                              int32_t rows,
                              int32_t sequences);

}  // namespace conclave::kernels
