// SPDX-License-Identifier: Apache-2.0
// Gated attention in loops: docs/qwen3.5-moe 3.4.
#include <algorithm>
#include <cmath>

#include "kernels/sequence_forms.h"

namespace conclave::kernels::plain {
namespace {

void Norm(const AttentionShape& s, std::span<const float> w, float* x) {
  float sum = 0.0f;
  for (int32_t i = 0; i < s.head_dim; ++i) sum += x[i] * x[i];
  const float factor =
      1.0f / std::sqrt(sum / static_cast<float>(s.head_dim) + s.eps);
  for (int32_t i = 0; i < s.head_dim; ++i) x[i] = x[i] * factor * w[i];
}

// Rotates pairs (i, i + rotary_dim / 2); angles in double.
void Rope(const AttentionShape& s, int32_t position, float* x) {
  const int32_t half = s.rotary_dim / 2;
  for (int32_t i = 0; i < half; ++i) {
    const double angle =
        position * std::pow(s.rope_theta, -2.0 * i / s.rotary_dim);
    const auto c = static_cast<float>(std::cos(angle));
    const auto d = static_cast<float>(std::sin(angle));
    const float a = x[i];
    const float b = x[i + half];
    x[i] = a * c - b * d;
    x[i + half] = b * c + a * d;
  }
}

// Address of a position's key (part 0) or value (part 1).
float* At(const AttentionShape& s,
          const KvCache& cache,
          const SequenceRows& sequence,
          int32_t part,
          int32_t head,
          int32_t position) {
  const size_t block = sequence.kv_blocks[position / s.block_tokens];
  const size_t row = ((block * 2 + part) * s.kv_heads + head) * s.block_tokens +
                     position % s.block_tokens;
  return cache.data.data() + row * s.head_dim;
}

void Append(const AttentionShape& s,
            const AttentionWeights& weights,
            const KvCache& cache,
            const SequenceRows& sequence,
            const AttentionRows& rows) {
  for (int32_t t = 0; t < sequence.rows; ++t) {
    const int32_t position = sequence.position + t;
    for (int32_t h = 0; h < s.kv_heads; ++h) {
      const size_t at = (static_cast<size_t>(t) * s.kv_heads + h) * s.head_dim;
      float* key = At(s, cache, sequence, 0, h, position);
      std::copy_n(&rows.k[at], s.head_dim, key);
      Norm(s, weights.k_norm, key);
      Rope(s, position, key);
      std::copy_n(
          &rows.v[at], s.head_dim, At(s, cache, sequence, 1, h, position));
    }
  }
}

// One query row of one head over positions [0, count).
void Attend(const AttentionShape& s,
            const KvCache& cache,
            const SequenceRows& sequence,
            int32_t kv_head,
            const float* q,
            int32_t count,
            float* scores,
            float* y) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  float largest = -INFINITY;
  for (int32_t p = 0; p < count; ++p) {
    const float* key = At(s, cache, sequence, 0, kv_head, p);
    float sum = 0.0f;
    for (int32_t i = 0; i < s.head_dim; ++i) sum += q[i] * key[i];
    scores[p] = sum * scale;
    largest = std::max(largest, scores[p]);
  }
  float total = 0.0f;
  std::fill_n(y, s.head_dim, 0.0f);
  for (int32_t p = 0; p < count; ++p) {
    const float e = std::exp(scores[p] - largest);
    const float* value = At(s, cache, sequence, 1, kv_head, p);
    total += e;
    for (int32_t i = 0; i < s.head_dim; ++i) y[i] += e * value[i];
  }
  for (int32_t i = 0; i < s.head_dim; ++i) y[i] /= total;
}

}  // namespace

void Attention(const Context& context,
               const AttentionShape& s,
               const AttentionWeights& weights,
               const KvCache& cache,
               const SequenceRows& sequence,
               const AttentionRows& rows) {
  const Workspace::Scope scope(context.workspace);
  float* scores =
      context.workspace->Floats(sequence.position + sequence.rows).data();
  Append(s, weights, cache, sequence, rows);
  for (int32_t t = 0; t < sequence.rows; ++t) {
    const int32_t position = sequence.position + t;
    for (int32_t h = 0; h < s.heads; ++h) {
      const size_t at = (static_cast<size_t>(t) * s.heads + h) * s.head_dim;
      float* q = &rows.q[2 * at];
      const float* gate = q + s.head_dim;
      float* y = &rows.y[at];
      Norm(s, weights.q_norm, q);
      Rope(s, position, q);
      Attend(s,
             cache,
             sequence,
             h / (s.heads / s.kv_heads),
             q,
             position + 1,
             scores,
             y);
      for (int32_t i = 0; i < s.head_dim; ++i) {
        y[i] *= 1.0f / (1.0f + std::exp(-gate[i]));
      }
    }
  }
}

}  // namespace conclave::kernels::plain
