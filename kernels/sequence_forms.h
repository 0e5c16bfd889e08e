// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention.h"
#include "kernels/context.h"
#include "kernels/gdn.h"

// The two twins of the parts of kernels/gdn.h and attention.h between the
// projections. Shapes are checked by the front files; nothing here can fail.
namespace conclave::kernels {

// All projections done. Rows are one sequence's (plain) or the step's (fast).
struct GdnRows {
  std::span<const float> mixed;  // [rows, channels]: q | k | v before the conv
  std::span<const float> z;      // [rows, value_heads * value_dim]
  std::span<const float> b;      // [rows, value_heads]
  std::span<const float> a;      // [rows, value_heads]
  std::span<float> y;            // [rows, value_heads * value_dim]
};

struct AttentionRows {
  std::span<float> q;        // [rows, heads, 2, head_dim]; normed in place
  std::span<const float> k;  // [rows, kv_heads, head_dim] as projected
  std::span<const float> v;  // [rows, kv_heads, head_dim]
  std::span<float> y;        // [rows, heads, head_dim]
};

namespace plain {

void Gdn(const Context& context,
         const GdnShape& shape,
         const GdnWeights& weights,
         const GdnState& state,
         const SequenceRows& sequence,
         const GdnRows& rows);

void Attention(const Context& context,
               const AttentionShape& shape,
               const AttentionWeights& weights,
               const KvCache& cache,
               const SequenceRows& sequence,
               const AttentionRows& rows);

}  // namespace plain

// The whole step, so that threads share (sequence, head) pairs. What one
// sequence writes, slot or KV block, no other may read in the same step.
namespace fast {

void Gdn(const Context& context,
         const GdnShape& shape,
         const GdnWeights& weights,
         const GdnState& state,
         const StepBatch& batch,
         const GdnRows& rows);

void Attention(const Context& context,
               const AttentionShape& shape,
               const AttentionWeights& weights,
               const KvCache& cache,
               const StepBatch& batch,
               const AttentionRows& rows);

}  // namespace fast

}  // namespace conclave::kernels
