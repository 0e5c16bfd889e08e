// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/sequence_forms.h"

namespace conclave::kernels {

// What the loops of fast::Gdn share.
struct GdnCall {
  const Context& context;
  const GdnShape& s;
  const GdnWeights& weights;
  const GdnState& state;
  const StepBatch& batch;
  const GdnRows& rows;
  const float* before;  // [sequences, taps - 1, channels]: old conv states
  float* conv;          // [rows, channels], q and k normed
  float* g;             // [rows, value_heads]
  float* beta;          // [rows, value_heads]

  int64_t channels() const { return s.channels(); }
  int64_t tail() const { return (s.conv_kernel - 1) * channels(); }
  // Pre-convolution row `t` of sequence `q`, t >= -(taps - 1).
  const float* Input(size_t q, int32_t t) const {
    if (t < 0) {
      return before + static_cast<int64_t>(q) * tail() +
             (t + s.conv_kernel - 1) * channels();
    }
    return rows.mixed.data() + (batch.sequences[q].row_begin + t) * channels();
  }
};

// One value head of one sequence.
struct HeadCall {
  const GdnCall& c;
  const SequenceRows& sequence;
  int32_t head;

  const float* Row(int32_t t) const {
    return c.conv + (sequence.row_begin + t) * c.channels();
  }
  int32_t key_head() const { return head / (c.s.value_heads / c.s.key_heads); }
  const float* q(int32_t t) const { return Row(t) + key_head() * c.s.key_dim; }
  const float* k(int32_t t) const {
    return Row(t) + (c.s.key_heads + key_head()) * c.s.key_dim;
  }
  const float* v(int32_t t) const {
    return Row(t) + 2 * c.s.key_heads * c.s.key_dim + head * c.s.value_dim;
  }
  int64_t GateAt(int32_t t) const {
    return static_cast<int64_t>(sequence.row_begin + t) * c.s.value_heads +
           head;
  }
  float* State(int32_t slot) const {
    return c.state.recurrent.data() +
           (static_cast<int64_t>(slot) * c.s.value_heads + head) * c.s.key_dim *
               c.s.value_dim;
  }
};

// What the loops of fast::Attention share.
struct AttentionCall {
  const Context& context;
  const AttentionShape& s;
  const AttentionWeights& weights;
  const KvCache& cache;
  const StepBatch& batch;
  const AttentionRows& rows;
  const int32_t* sequence_of;  // [rows]
  float* cosines;              // [rows, rotary_dim / 2]
  float* sines;                // [rows, rotary_dim / 2]

  // First of the block's positions of one head: keys (part 0) or values (1).
  float* Block(int32_t block, int32_t part, int32_t head) const {
    const int64_t row =
        (static_cast<int64_t>(block) * 2 + part) * s.kv_heads + head;
    return cache.data.data() + row * s.block_tokens * s.head_dim;
  }
};

}  // namespace conclave::kernels
