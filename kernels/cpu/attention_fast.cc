// SPDX-License-Identifier: Apache-2.0
// Gated attention with vectors and threads: docs/qwen3.5-moe 3.4. Softmax runs
// online over KV blocks counted from position 0, so a row's bits depend on its
// own positions alone.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/sequence_calls.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_fast.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per target.
#include "kernels/cpu/sequence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

HWY_ATTR void NormRow(const AttentionShape& s,
                      std::span<const float> weight,
                      const float* x,
                      float* out) {
  const SF d;
  const int64_t n = s.head_dim;
  const float factor =
      1.0f / std::sqrt(Dot(x, x, n) / static_cast<float>(n) + s.eps);
  const SV f = hs::Set(d, factor);
  int64_t i = 0;
  for (; i + Width() <= n; i += Width()) {
    hs::StoreU(hs::Mul(hs::Mul(hs::LoadU(d, x + i), f),
                       hs::LoadU(d, weight.data() + i)),
               d,
               out + i);
  }
  for (; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

HWY_ATTR void RopeRow(const AttentionCall& c, int64_t row, float* x) {
  const SF d;
  const int64_t half = c.s.rotary_dim / 2;
  const float* cosine = c.cosines + row * half;
  const float* sine = c.sines + row * half;
  int64_t i = 0;
  for (; i + Width() <= half; i += Width()) {
    const SV a = hs::LoadU(d, x + i);
    const SV b = hs::LoadU(d, x + i + half);
    const SV co = hs::LoadU(d, cosine + i);
    const SV si = hs::LoadU(d, sine + i);
    hs::StoreU(hs::Sub(hs::Mul(a, co), hs::Mul(b, si)), d, x + i);
    hs::StoreU(hs::Add(hs::Mul(b, co), hs::Mul(a, si)), d, x + i + half);
  }
  for (; i < half; ++i) {
    const float a = x[i];
    const float b = x[i + half];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + half] = b * cosine[i] + a * sine[i];
  }
}

// Angles in double; queries normed and rotated, keys and values appended.
HWY_ATTR void PrepareRow(const AttentionCall& c, int64_t row) {
  const AttentionShape& s = c.s;
  const SequenceRows& sequence = c.batch.sequences[c.sequence_of[row]];
  const int32_t position =
      sequence.position + static_cast<int32_t>(row) - sequence.row_begin;
  const int64_t half = s.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double angle =
        position * std::pow(s.rope_theta, -2.0 * i / s.rotary_dim);
    c.cosines[row * half + i] = static_cast<float>(std::cos(angle));
    c.sines[row * half + i] = static_cast<float>(std::sin(angle));
  }
  const int32_t block = sequence.kv_blocks[position / s.block_tokens];
  const int64_t at = position % s.block_tokens * s.head_dim;
  for (int32_t h = 0; h < s.kv_heads; ++h) {
    const int64_t from = (row * s.kv_heads + h) * s.head_dim;
    float* key = c.Block(block, 0, h) + at;
    NormRow(s, c.weights.k_norm, &c.rows.k[from], key);
    RopeRow(c, row, key);
    std::copy_n(&c.rows.v[from], s.head_dim, c.Block(block, 1, h) + at);
  }
  for (int32_t h = 0; h < s.heads; ++h) {
    float* q = &c.rows.q[(row * s.heads + h) * 2 * s.head_dim];
    NormRow(s, c.weights.q_norm, q, q);
    RopeRow(c, row, q);
  }
}

// The state of an online softmax (Milakov and Gimelshein, arXiv 1805.02867).
struct Running {
  float largest = -INFINITY;
  float total = 0.0f;
};

// scores[p] = q . key p, for N neighbouring keys; one chain of sums per key,
// so that a score does not depend on N.
template <int N>
HWY_INLINE void Scores(const float* q,
                       const float* keys,
                       int64_t n,
                       float* scores) {
  const SF d;
  SV sum[N];
  for (int p = 0; p < N; ++p) sum[p] = hs::Zero(d);
  int64_t i = 0;
  for (; i + Width() <= n; i += Width()) {
    const SV x = hs::LoadU(d, q + i);
    for (int p = 0; p < N; ++p) {
      sum[p] = hs::MulAdd(x, hs::LoadU(d, keys + p * n + i), sum[p]);
    }
  }
  for (int p = 0; p < N; ++p) {
    scores[p] = SumLanes(sum[p]);
    for (int64_t j = i; j < n; ++j) {
      scores[p] = std::fma(q[j], keys[p * n + j], scores[p]);
    }
  }
}

// y = shrink y + sum_p scores[p] value p, for N vectors of columns.
template <int N>
HWY_INLINE void Values(const float* scores,
                       const float* values,
                       int64_t n,
                       int32_t count,
                       float shrink,
                       float* y) {
  const SF d;
  SV sum[N];
  for (int v = 0; v < N; ++v) {
    sum[v] = hs::Mul(hs::LoadU(d, y + v * Width()), hs::Set(d, shrink));
  }
  for (int32_t p = 0; p < count; ++p) {
    const SV weight = hs::Set(d, scores[p]);
    for (int v = 0; v < N; ++v) {
      sum[v] = hs::MulAdd(
          weight, hs::LoadU(d, values + p * n + v * Width()), sum[v]);
    }
  }
  for (int v = 0; v < N; ++v) hs::StoreU(sum[v], d, y + v * Width());
}

// Adds `count` positions of one block to y.
HWY_ATTR void AttendBlock(const AttentionShape& s,
                          const float* q,
                          const float* keys,
                          const float* values,
                          int32_t count,
                          float* scores,
                          Running& state,
                          float* y) {
  const int64_t n = s.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  float largest = state.largest;
  int32_t p = 0;
  for (; p + 4 <= count; p += 4) Scores<4>(q, keys + p * n, n, scores + p);
  for (; p < count; ++p) Scores<1>(q, keys + p * n, n, scores + p);
  for (p = 0; p < count; ++p) {
    scores[p] *= scale;
    largest = std::max(largest, scores[p]);
  }
  const float shrink = std::exp(state.largest - largest);
  state.largest = largest;
  state.total *= shrink;
  for (p = 0; p < count; ++p) {
    scores[p] = std::exp(scores[p] - largest);
    state.total += scores[p];
  }
  int64_t i = 0;
  for (; i + 4 * Width() <= n; i += 4 * Width()) {
    Values<4>(scores, values + i, n, count, shrink, y + i);
  }
  for (; i + Width() <= n; i += Width()) {
    Values<1>(scores, values + i, n, count, shrink, y + i);
  }
  for (; i < n; ++i) {
    float sum = y[i] * shrink;
    for (p = 0; p < count; ++p) {
      sum = std::fma(scores[p], values[p * n + i], sum);
    }
    y[i] = sum;
  }
}

HWY_ATTR void AttendRow(const AttentionCall& c, int64_t row, int32_t head) {
  thread_local std::vector<float> scores;
  const AttentionShape& s = c.s;
  scores.resize(static_cast<size_t>(s.block_tokens));
  const SequenceRows& sequence = c.batch.sequences[c.sequence_of[row]];
  const int32_t positions =
      sequence.position + static_cast<int32_t>(row) - sequence.row_begin + 1;
  const int32_t kv_head = head / (s.heads / s.kv_heads);
  const float* q = &c.rows.q[(row * s.heads + head) * 2 * s.head_dim];
  const float* gate = q + s.head_dim;
  float* y = &c.rows.y[(row * s.heads + head) * s.head_dim];
  std::fill_n(y, s.head_dim, 0.0f);
  Running state;
  for (int32_t p = 0; p < positions; p += s.block_tokens) {
    const int32_t block = sequence.kv_blocks[p / s.block_tokens];
    AttendBlock(s,
                q,
                c.Block(block, 0, kv_head),
                c.Block(block, 1, kv_head),
                std::min(s.block_tokens, positions - p),
                scores.data(),
                state,
                y);
  }
  const SF d;
  const float inverse = 1.0f / state.total;
  const SV f = hs::Set(d, inverse);
  int64_t i = 0;
  for (; i + Width() <= s.head_dim; i += Width()) {
    const SV open = Sigmoid(hs::LoadU(d, gate + i));
    hs::StoreU(hs::Mul(hs::Mul(hs::LoadU(d, y + i), f), open), d, y + i);
  }
  for (; i < s.head_dim; ++i) y[i] = y[i] * inverse * SigmoidOf(gate[i]);
}

void AttentionImpl(const AttentionCall& c) {
  const int64_t heads = c.s.heads;
  c.context.pool->ParallelFor(c.batch.rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) PrepareRow(c, row);
  });
  c.context.pool->ParallelFor(
      c.batch.rows * heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          AttendRow(c, i / heads, static_cast<int32_t>(i % heads));
        }
      });
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels::fast {

HWY_EXPORT(AttentionImpl);

void Attention(const Context& context,
               const AttentionShape& s,
               const AttentionWeights& weights,
               const KvCache& cache,
               const StepBatch& batch,
               const AttentionRows& rows) {
  const Workspace::Scope scope(context.workspace);
  Workspace& workspace = *context.workspace;
  const auto count = static_cast<size_t>(batch.rows);
  std::span<int32_t> sequence_of = workspace.Ints(count);
  for (size_t q = 0; q < batch.sequences.size(); ++q) {
    const SequenceRows& sequence = batch.sequences[q];
    std::fill_n(sequence_of.begin() + sequence.row_begin,
                sequence.rows,
                static_cast<int32_t>(q));
  }
  const size_t angles = count * static_cast<size_t>(s.rotary_dim / 2);
  HWY_DYNAMIC_DISPATCH(AttentionImpl)
  ({context,
    s,
    weights,
    cache,
    batch,
    rows,
    sequence_of.data(),
    workspace.Floats(angles).data(),
    workspace.Floats(angles).data()});
}

}  // namespace conclave::kernels::fast
#endif  // HWY_ONCE
