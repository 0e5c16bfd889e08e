// SPDX-License-Identifier: Apache-2.0
// Gated DeltaNet with vectors and threads: docs/qwen3.5-moe 3.3 and 3.3.1. Two
// loops per call: over rows (convolution, norms, gates), then over sequences
// and value heads (state, output). A head is one thread's work, so no sum
// depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/sequence_calls.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gdn_fast.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per target.
#include "kernels/cpu/sequence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

constexpr int32_t kTaps = 4;  // of the vector form of the convolution

HWY_INLINE float Softplus(float x) {
  return x > 20.0f ? x : std::log1p(std::exp(x));
}

// silu of the convolution of row t, all channels.
HWY_ATTR void ConvolveRow(const GdnCall& c, size_t q, int32_t t, float* out) {
  const SF d;
  const int64_t w = Width();
  const int64_t n = c.channels();
  const float* taps = c.weights.conv.data();
  int64_t i = 0;
  if (c.s.conv_kernel == kTaps) {
    const float* x0 = c.Input(q, t - 3);
    const float* x1 = c.Input(q, t - 2);
    const float* x2 = c.Input(q, t - 1);
    const float* x3 = c.Input(q, t);
    for (; i + w <= n; i += w) {
      SV w0, w1, w2, w3;
      hs::LoadInterleaved4(d, taps + i * kTaps, w0, w1, w2, w3);
      SV sum = hs::Mul(w0, hs::LoadU(d, x0 + i));
      sum = hs::MulAdd(w1, hs::LoadU(d, x1 + i), sum);
      sum = hs::MulAdd(w2, hs::LoadU(d, x2 + i), sum);
      sum = hs::MulAdd(w3, hs::LoadU(d, x3 + i), sum);
      hs::StoreU(hs::Mul(sum, Sigmoid(sum)), d, out + i);
    }
  }
  for (; i < n; ++i) {
    float sum = 0.0f;
    for (int32_t j = 0; j < c.s.conv_kernel; ++j) {
      sum += taps[i * c.s.conv_kernel + j] *
             c.Input(q, t - (c.s.conv_kernel - 1) + j)[i];
    }
    out[i] = sum * SigmoidOf(sum);
  }
}

HWY_ATTR void PrepareRow(const GdnCall& c, size_t q, int32_t t) {
  const int64_t row = c.batch.sequences[q].row_begin + t;
  float* out = c.conv + row * c.channels();
  ConvolveRow(c, q, t, out);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.s.key_dim));
  for (int32_t k = 0; k < 2 * c.s.key_heads; ++k) {
    float* x = out + k * c.s.key_dim;
    const float sum = Dot(x, x, c.s.key_dim);
    Scale(x,
          c.s.key_dim,
          (k < c.s.key_heads ? scale : 1.0f) / std::sqrt(sum + 1e-6f));
  }
  for (int32_t h = 0; h < c.s.value_heads; ++h) {
    const int64_t at = row * c.s.value_heads + h;
    c.beta[at] = SigmoidOf(c.rows.b[at]);
    c.g[at] = -std::exp(c.weights.a_log[h]) *
              Softplus(c.rows.a[at] + c.weights.dt_bias[h]);
  }
}

// y = norm(o) * w * silu(z).
HWY_ATTR void GatedNormRow(const GdnCall& c,
                           const float* o,
                           const float* z,
                           float* y) {
  const SF d;
  const int64_t n = c.s.value_dim;
  const float* weight = c.weights.norm.data();
  const float factor =
      1.0f / std::sqrt(Dot(o, o, n) / static_cast<float>(n) + c.s.eps);
  const SV f = hs::Set(d, factor);
  int64_t j = 0;
  for (; j + Width() <= n; j += Width()) {
    const SV gate = hs::LoadU(d, z + j);
    const SV normed =
        hs::Mul(hs::LoadU(d, weight + j), hs::Mul(hs::LoadU(d, o + j), f));
    hs::StoreU(hs::Mul(normed, hs::Mul(gate, Sigmoid(gate))), d, y + j);
  }
  for (; j < n; ++j) {
    y[j] = weight[j] * (o[j] * factor) * (z[j] * SigmoidOf(z[j]));
  }
}

// One token of one head.
struct Decayed {
  const float* q;
  const float* k;
  const float* v;
  float decay;
  float beta;
  float qk;  // q . k
};

// Recurrent for N vectors of columns from j on. A column's sums do not depend
// on N, which only hides latency.
template <int N>
HWY_INLINE void RecurrentColumns(
    const Decayed& t, int64_t dk, int64_t dv, int64_t j, float* S, float* o) {
  const SF d;
  const int64_t w = Width();
  const SV e = hs::Set(d, t.decay);
  SV p[N], r[N], delta[N];
  for (int n = 0; n < N; ++n) p[n] = r[n] = hs::Zero(d);
  for (int64_t i = 0; i < dk; ++i) {
    const SV k = hs::Set(d, t.k[i]);
    const SV q = hs::Set(d, t.q[i]);
    for (int n = 0; n < N; ++n) {
      const SV s = hs::LoadU(d, S + i * dv + j + n * w);
      p[n] = hs::MulAdd(k, s, p[n]);
      r[n] = hs::MulAdd(q, s, r[n]);
    }
  }
  for (int n = 0; n < N; ++n) {
    delta[n] =
        hs::Mul(hs::Set(d, t.beta),
                hs::Sub(hs::LoadU(d, t.v + j + n * w), hs::Mul(e, p[n])));
    hs::StoreU(hs::MulAdd(hs::Set(d, t.qk), delta[n], hs::Mul(e, r[n])),
               d,
               o + j + n * w);
  }
  for (int64_t i = 0; i < dk; ++i) {
    const SV k = hs::Set(d, t.k[i]);
    for (int n = 0; n < N; ++n) {
      float* at = S + i * dv + j + n * w;
      hs::StoreU(hs::MulAdd(k, delta[n], hs::Mul(e, hs::LoadU(d, at))), d, at);
    }
  }
}

// S <- e S; d = beta (v - S^T k); S <- S + k d^T; o = S^T q, in two sweeps:
// o = e S_old^T q + (q . k) d.
HWY_ATTR void Recurrent(const HeadCall& h, int32_t t, float* S, float* o) {
  const int64_t w = Width();
  const int64_t dk = h.c.s.key_dim;
  const int64_t dv = h.c.s.value_dim;
  const float* q = h.q(t);
  const float* k = h.k(t);
  const float* v = h.v(t);
  const float decay = std::exp(h.c.g[h.GateAt(t)]);
  const float beta = h.c.beta[h.GateAt(t)];
  const float qk = Dot(q, k, dk);
  const Decayed terms{q, k, v, decay, beta, qk};
  int64_t j = 0;
  for (; j + 4 * w <= dv; j += 4 * w)
    RecurrentColumns<4>(terms, dk, dv, j, S, o);
  for (; j + w <= dv; j += w) RecurrentColumns<1>(terms, dk, dv, j, S, o);
  for (; j < dv; ++j) {
    float p = 0.0f;
    float r = 0.0f;
    for (int64_t i = 0; i < dk; ++i) {
      p = std::fma(k[i], S[i * dv + j], p);
      r = std::fma(q[i], S[i * dv + j], r);
    }
    const float delta = beta * (v[j] - decay * p);
    for (int64_t i = 0; i < dk; ++i) {
      S[i * dv + j] = std::fma(k[i], delta, decay * S[i * dv + j]);
    }
    o[j] = std::fma(qk, delta, decay * r);
  }
}

// Scratch of a chunk, of one thread.
struct ChunkScratch {
  std::vector<float> kt, qk, kk, D;
};

// Rows [begin, begin + n) as one cell.
HWY_ATTR void Chunk(const HeadCall& h,
                    int32_t begin,
                    int32_t n,
                    float* S,
                    ChunkScratch& scratch,
                    float* o) {
  const int64_t dk = h.c.s.key_dim;
  const int64_t dv = h.c.s.value_dim;
  const int64_t row = h.c.channels();
  float sums[64];
  float total = 0.0f;
  for (int32_t i = 0; i < n; ++i) {
    sums[i] = total += h.c.g[h.GateAt(begin + i)];
  }
  scratch.kt.assign(dk * n, 0.0f);
  scratch.kk.assign(static_cast<size_t>(n) * n, 0.0f);
  scratch.qk.assign(static_cast<size_t>(n) * n, 0.0f);
  scratch.D.assign(n * dv, 0.0f);
  float* kt = scratch.kt.data();
  float* D = scratch.D.data();
  for (int32_t l = 0; l < n; ++l) {
    const float* k = h.k(begin + l);
    for (int64_t c = 0; c < dk; ++c) kt[c * n + l] = k[c];
  }
  const Matrix K{h.k(begin), row, 1};
  const Matrix Q{h.q(begin), row, 1};
  Gemm(K, kt, n, scratch.kk.data(), n, n, n, dk);
  Gemm(Q, kt, n, scratch.qk.data(), n, n, n, dk);
  // D = diag(beta) (V - exp(G) K S0), then forward substitution.
  Gemm(K, S, dv, D, dv, n, dv, dk);
  for (int32_t i = 0; i < n; ++i) {
    const float decay = std::exp(sums[i]);
    const float beta = h.c.beta[h.GateAt(begin + i)];
    const float* v = h.v(begin + i);
    float* di = D + i * dv;
    for (int64_t j = 0; j < dv; ++j) di[j] = beta * (v[j] - decay * di[j]);
    float* a = &scratch.kk[static_cast<size_t>(i) * n];
    for (int32_t l = 0; l < i; ++l) {
      a[l] *= -beta * std::exp(sums[i] - sums[l]);
    }
    GemmRows<1>({a, n, 1}, D, dv, di, dv, dv, i);
  }
  // O = exp(G) Q S0 + (masked, decayed Q K^T) D.
  std::fill_n(o, n * dv, 0.0f);
  Gemm(Q, S, dv, o, dv, n, dv, dk);
  for (int32_t i = 0; i < n; ++i) {
    Scale(o + i * dv, dv, std::exp(sums[i]));
    float* a = &scratch.qk[static_cast<size_t>(i) * n];
    for (int32_t l = 0; l <= i; ++l) a[l] *= std::exp(sums[i] - sums[l]);
    GemmRows<1>({a, n, 1}, D, dv, o + i * dv, dv, dv, i + 1);
  }
  // S1 = exp(G_last) S0 + sum_l exp(G_last - G_l) k_l D_l^T.
  Scale(S, dk * dv, std::exp(total));
  for (int32_t l = 0; l < n; ++l) {
    const float a = std::exp(total - sums[l]);
    for (int64_t c = 0; c < dk; ++c) kt[c * n + l] *= a;
  }
  Gemm({kt, n, 1}, D, dv, S, dv, dk, dv, n);
}

// Makes slot `to` a copy of slot `from`; < 0: zeros.
HWY_ATTR void BeginState(const HeadCall& h, int32_t from, int32_t to) {
  const size_t size = static_cast<size_t>(h.c.s.key_dim) * h.c.s.value_dim;
  if (from == to) return;
  if (from < 0) {
    std::fill_n(h.State(to), size, 0.0f);
  } else {
    std::copy_n(h.State(from), size, h.State(to));
  }
}

HWY_ATTR void RunHead(const HeadCall& h) {
  thread_local std::vector<float> o;
  thread_local ChunkScratch scratch;
  const GdnCall& c = h.c;
  const int64_t dv = c.s.value_dim;
  const auto slots = h.sequence.state_slots_out;
  o.resize(static_cast<size_t>(h.sequence.rows) * dv);
  if (h.sequence.cells.empty()) {
    int32_t from = h.sequence.state_slot_in;
    for (int32_t t = 0; t < h.sequence.rows; ++t) {
      const int32_t to = slots[slots.size() == 1 ? 0 : t];
      BeginState(h, from, to);
      Recurrent(h, t, h.State(to), o.data() + t * dv);
      from = to;
    }
  } else {
    BeginState(h, h.sequence.state_slot_in, slots[0]);
    int32_t begin = 0;
    for (const int32_t end : h.sequence.cells) {
      Chunk(h,
            begin,
            end - begin,
            h.State(slots[0]),
            scratch,
            o.data() + begin * dv);
      begin = end;
    }
  }
  for (int32_t t = 0; t < h.sequence.rows; ++t) {
    const int64_t at =
        ((h.sequence.row_begin + t) * static_cast<int64_t>(c.s.value_heads) +
         h.head) *
        dv;
    GatedNormRow(c, o.data() + t * dv, &c.rows.z[at], &c.rows.y[at]);
  }
}

// The conv states after the rows that have a slot.
HWY_ATTR void StoreConv(const GdnCall& c, size_t q) {
  const SequenceRows& sequence = c.batch.sequences[q];
  const auto slots = sequence.state_slots_out;
  for (size_t i = 0; i < slots.size(); ++i) {
    const int32_t t =
        slots.size() == 1 ? sequence.rows - 1 : static_cast<int32_t>(i);
    float* to = c.state.conv.data() + slots[i] * c.tail();
    for (int32_t j = 0; j < c.s.conv_kernel - 1; ++j) {
      std::copy_n(c.Input(q, t - (c.s.conv_kernel - 2) + j),
                  c.channels(),
                  to + j * c.channels());
    }
  }
}

void GdnImpl(const GdnCall& c) {
  const auto sequences = static_cast<int64_t>(c.batch.sequences.size());
  c.context.pool->ParallelFor(
      c.batch.rows,
      std::max<int64_t>(1, 8192 / c.channels()),
      [&](int64_t begin, int64_t end) {
        for (size_t q = 0; q < c.batch.sequences.size(); ++q) {
          const SequenceRows& s = c.batch.sequences[q];
          const int64_t first = std::max<int64_t>(begin, s.row_begin);
          const int64_t last = std::min<int64_t>(end, s.row_begin + s.rows);
          for (int64_t r = first; r < last; ++r) {
            PrepareRow(c, q, static_cast<int32_t>(r - s.row_begin));
          }
        }
      });
  const int64_t heads = c.s.value_heads;
  c.context.pool->ParallelFor(
      sequences * heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const auto q = static_cast<size_t>(i / heads);
          const auto head = static_cast<int32_t>(i % heads);
          if (head == 0) StoreConv(c, q);
          RunHead({c, c.batch.sequences[q], head});
        }
      });
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels::fast {

HWY_EXPORT(GdnImpl);

void Gdn(const Context& context,
         const GdnShape& s,
         const GdnWeights& weights,
         const GdnState& state,
         const StepBatch& batch,
         const GdnRows& rows) {
  const Workspace::Scope scope(context.workspace);
  Workspace& workspace = *context.workspace;
  const auto count = static_cast<size_t>(batch.rows);
  const auto channels = static_cast<size_t>(s.channels());
  const size_t tail = static_cast<size_t>(s.conv_kernel - 1) * channels;
  // A copy: a slot may be read and written by the same call.
  float* before = workspace.Floats(batch.sequences.size() * tail).data();
  for (size_t q = 0; q < batch.sequences.size(); ++q) {
    const int32_t slot = batch.sequences[q].state_slot_in;
    if (slot < 0) {
      std::fill_n(before + q * tail, tail, 0.0f);
    } else {
      std::copy_n(state.conv.data() + slot * tail, tail, before + q * tail);
    }
  }
  HWY_DYNAMIC_DISPATCH(GdnImpl)
  ({context,
    s,
    weights,
    state,
    batch,
    rows,
    before,
    workspace.Floats(count * channels).data(),
    workspace.Floats(count * s.value_heads).data(),
    workspace.Floats(count * s.value_heads).data()});
}

}  // namespace conclave::kernels::fast
#endif  // HWY_ONCE
