// SPDX-License-Identifier: Apache-2.0
// Gated DeltaNet in loops: docs/qwen3.5-moe 3.3 (recurrent) and 3.3.1
// (chunked).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/sequence_forms.h"

namespace conclave::kernels::plain {
namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
float Silu(float x) { return x * Sigmoid(x); }
float Softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Rows of the conv state of a slot; nullptr: zeros.
const float* ConvIn(const GdnShape& s, const GdnState& state, int32_t slot) {
  if (slot < 0) return nullptr;
  return state.conv.data() +
         static_cast<size_t>(slot) * (s.conv_kernel - 1) * s.channels();
}

// Pre-convolution row at `t` of this call; t < 0 comes from the state.
float Input(const GdnShape& s,
            const float* before,
            const GdnRows& rows,
            int32_t t,
            int32_t channel) {
  if (t >= 0)
    return rows.mixed[static_cast<size_t>(t) * s.channels() + channel];
  if (before == nullptr) return 0.0f;
  return before[static_cast<size_t>(t + s.conv_kernel - 1) * s.channels() +
                channel];
}

// conv[t] = silu(causal depthwise convolution), [rows, channels].
void Convolve(const GdnShape& s,
              const GdnWeights& weights,
              const float* before,
              const SequenceRows& sequence,
              const GdnRows& rows,
              float* conv) {
  for (int32_t t = 0; t < sequence.rows; ++t) {
    for (int32_t c = 0; c < s.channels(); ++c) {
      float sum = 0.0f;
      for (int32_t j = 0; j < s.conv_kernel; ++j) {
        sum += weights.conv[static_cast<size_t>(c) * s.conv_kernel + j] *
               Input(s, before, rows, t - (s.conv_kernel - 1) + j, c);
      }
      conv[static_cast<size_t>(t) * s.channels() + c] = Silu(sum);
    }
  }
}

// The conv state after row `t`, into `slot`.
void StoreConv(const GdnShape& s,
               const GdnState& state,
               const float* before,
               const GdnRows& rows,
               int32_t t,
               int32_t slot,
               float* scratch) {
  const size_t size = static_cast<size_t>(s.conv_kernel - 1) * s.channels();
  for (int32_t j = 0; j < s.conv_kernel - 1; ++j) {
    for (int32_t c = 0; c < s.channels(); ++c) {
      scratch[static_cast<size_t>(j) * s.channels() + c] =
          Input(s, before, rows, t - (s.conv_kernel - 2) + j, c);
    }
  }
  std::memcpy(state.conv.data() + slot * size, scratch, size * sizeof(float));
}

// x / sqrt(sum(x^2) + 1e-6) * scale, in place.
void L2Norm(float* x, int32_t n, float scale) {
  float sum = 0.0f;
  for (int32_t i = 0; i < n; ++i) sum += x[i] * x[i];
  const float factor = scale / std::sqrt(sum + 1e-6f);
  for (int32_t i = 0; i < n; ++i) x[i] *= factor;
}

// y = w * (o / rms(o)) * silu(z), norm before gate.
void GatedNorm(const GdnShape& s,
               const GdnWeights& weights,
               const float* o,
               const float* z,
               float* y) {
  float sum = 0.0f;
  for (int32_t j = 0; j < s.value_dim; ++j) sum += o[j] * o[j];
  const float factor =
      1.0f / std::sqrt(sum / static_cast<float>(s.value_dim) + s.eps);
  for (int32_t j = 0; j < s.value_dim; ++j) {
    y[j] = weights.norm[j] * (o[j] * factor) * Silu(z[j]);
  }
}

// One head of one sequence: where its q, k, v of a row lie, and its gates.
struct Head {
  const GdnShape& s;
  const float* conv;  // [rows, channels], q and k normed
  const float* g;     // [rows, value_heads], log decay
  const float* beta;  // [rows, value_heads]
  int32_t head;

  int32_t key_head() const { return head / (s.value_heads / s.key_heads); }
  const float* Row(int32_t t) const {
    return conv + static_cast<size_t>(t) * s.channels();
  }
  const float* q(int32_t t) const { return Row(t) + key_head() * s.key_dim; }
  const float* k(int32_t t) const {
    return Row(t) + (s.key_heads + key_head()) * s.key_dim;
  }
  const float* v(int32_t t) const {
    return Row(t) + 2 * s.key_heads * s.key_dim + head * s.value_dim;
  }
  float G(int32_t t) const { return g[t * s.value_heads + head]; }
  float Beta(int32_t t) const { return beta[t * s.value_heads + head]; }
};

// S <- e^g S; d = beta (v - S^T k); S <- S + k d^T; o = S^T q.
void Recurrent(const Head& h, int32_t t, float* S, float* d, float* o) {
  const int32_t dk = h.s.key_dim;
  const int32_t dv = h.s.value_dim;
  const float decay = std::exp(h.G(t));
  for (int32_t i = 0; i < dk * dv; ++i) S[i] *= decay;
  for (int32_t j = 0; j < dv; ++j) {
    float p = 0.0f;
    for (int32_t i = 0; i < dk; ++i) p += h.k(t)[i] * S[i * dv + j];
    d[j] = h.Beta(t) * (h.v(t)[j] - p);
  }
  for (int32_t i = 0; i < dk; ++i) {
    for (int32_t j = 0; j < dv; ++j) S[i * dv + j] += h.k(t)[i] * d[j];
  }
  for (int32_t j = 0; j < dv; ++j) {
    float sum = 0.0f;
    for (int32_t i = 0; i < dk; ++i) sum += h.q(t)[i] * S[i * dv + j];
    o[j] = sum;
  }
}

float Dot(const float* a, const float* b, int32_t n) {
  float sum = 0.0f;
  for (int32_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Rows [begin, begin + n) as one cell; D is [n, value_dim], o too.
void Chunk(
    const Head& h, int32_t begin, int32_t n, float* S, float* D, float* o) {
  const int32_t dk = h.s.key_dim;
  const int32_t dv = h.s.value_dim;
  float sums[64];
  float total = 0.0f;
  for (int32_t i = 0; i < n; ++i) sums[i] = total += h.G(begin + i);
  // D = U - W S0 solves (I + A) D = diag(beta) (V - exp(G) K S0) row by row.
  for (int32_t i = 0; i < n; ++i) {
    const float decay = std::exp(sums[i]);
    for (int32_t j = 0; j < dv; ++j) {
      float p = 0.0f;
      for (int32_t c = 0; c < dk; ++c) {
        p += h.k(begin + i)[c] * S[c * dv + j];
      }
      D[i * dv + j] = h.Beta(begin + i) * (h.v(begin + i)[j] - decay * p);
    }
    for (int32_t l = 0; l < i; ++l) {
      const float a = h.Beta(begin + i) *
                      Dot(h.k(begin + i), h.k(begin + l), dk) *
                      std::exp(sums[i] - sums[l]);
      for (int32_t j = 0; j < dv; ++j) D[i * dv + j] -= a * D[l * dv + j];
    }
  }
  for (int32_t i = 0; i < n; ++i) {
    const float decay = std::exp(sums[i]);
    for (int32_t j = 0; j < dv; ++j) {
      float sum = 0.0f;
      for (int32_t c = 0; c < dk; ++c) {
        sum += h.q(begin + i)[c] * S[c * dv + j];
      }
      o[i * dv + j] = decay * sum;
    }
    for (int32_t l = 0; l <= i; ++l) {
      const float a =
          Dot(h.q(begin + i), h.k(begin + l), dk) * std::exp(sums[i] - sums[l]);
      for (int32_t j = 0; j < dv; ++j) o[i * dv + j] += a * D[l * dv + j];
    }
  }
  const float decay = std::exp(total);
  for (int32_t i = 0; i < dk * dv; ++i) S[i] *= decay;
  for (int32_t l = 0; l < n; ++l) {
    const float a = std::exp(total - sums[l]);
    for (int32_t i = 0; i < dk; ++i) {
      for (int32_t j = 0; j < dv; ++j) {
        S[i * dv + j] += a * h.k(begin + l)[i] * D[l * dv + j];
      }
    }
  }
}

void Gates(const GdnShape& s,
           const GdnWeights& weights,
           const GdnRows& rows,
           std::span<float> g,
           std::span<float> beta) {
  for (size_t i = 0; i < g.size(); ++i) {
    const size_t h = i % static_cast<size_t>(s.value_heads);
    beta[i] = Sigmoid(rows.b[i]);
    g[i] =
        -std::exp(weights.a_log[h]) * Softplus(rows.a[i] + weights.dt_bias[h]);
  }
}

// All rows of one value head; the states go to their slots.
void RunHead(const Context& context,
             const GdnState& state,
             const SequenceRows& sequence,
             const Head& h,
             float* o) {
  const size_t cell = static_cast<size_t>(h.s.key_dim) * h.s.value_dim;
  const auto at = [&](int32_t slot) {
    return state.recurrent.data() +
           (static_cast<size_t>(slot) * h.s.value_heads + h.head) * cell;
  };
  const Workspace::Scope scope(context.workspace);
  float* S = context.workspace->Floats(cell).data();
  float* D = context.workspace->Floats(64 * h.s.value_dim).data();
  if (sequence.state_slot_in < 0) {
    std::fill_n(S, cell, 0.0f);
  } else {
    std::copy_n(at(sequence.state_slot_in), cell, S);
  }
  const auto slots = sequence.state_slots_out;
  if (sequence.cells.empty()) {
    for (int32_t t = 0; t < sequence.rows; ++t) {
      Recurrent(h, t, S, D, o + static_cast<size_t>(t) * h.s.value_dim);
      if (slots.size() > 1) std::copy_n(S, cell, at(slots[t]));
    }
  } else {
    int32_t begin = 0;
    for (const int32_t end : sequence.cells) {
      Chunk(h,
            begin,
            end - begin,
            S,
            D,
            o + static_cast<size_t>(begin) * h.s.value_dim);
      begin = end;
    }
  }
  if (slots.size() == 1) std::copy_n(S, cell, at(slots[0]));
}

}  // namespace

void Gdn(const Context& context,
         const GdnShape& s,
         const GdnWeights& weights,
         const GdnState& state,
         const SequenceRows& sequence,
         const GdnRows& rows) {
  const Workspace::Scope scope(context.workspace);
  Workspace& workspace = *context.workspace;
  const auto count = static_cast<size_t>(sequence.rows);
  std::span<float> conv = workspace.Floats(count * s.channels());
  std::span<float> g = workspace.Floats(count * s.value_heads);
  std::span<float> beta = workspace.Floats(count * s.value_heads);
  std::span<float> o = workspace.Floats(count * s.value_dim);
  const size_t tail = static_cast<size_t>(s.conv_kernel - 1) * s.channels();
  std::span<float> before = workspace.Floats(tail);
  std::span<float> scratch = workspace.Floats(tail);
  const float* in = ConvIn(s, state, sequence.state_slot_in);
  if (in != nullptr) std::copy_n(in, tail, before.data());
  const float* head = in == nullptr ? nullptr : before.data();
  Convolve(s, weights, head, sequence, rows, conv.data());
  Gates(s, weights, rows, g, beta);
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.key_dim));
  for (size_t t = 0; t < count; ++t) {
    for (int32_t k = 0; k < 2 * s.key_heads; ++k) {
      L2Norm(&conv[t * s.channels() + k * s.key_dim],
             s.key_dim,
             k < s.key_heads ? scale : 1.0f);
    }
  }
  const size_t values = static_cast<size_t>(s.value_heads) * s.value_dim;
  for (int32_t h = 0; h < s.value_heads; ++h) {
    RunHead(context,
            state,
            sequence,
            {s, conv.data(), g.data(), beta.data(), h},
            o.data());
    for (size_t t = 0; t < count; ++t) {
      const size_t at = t * values + static_cast<size_t>(h) * s.value_dim;
      GatedNorm(s, weights, &o[t * s.value_dim], &rows.z[at], &rows.y[at]);
    }
  }
  const auto slots = sequence.state_slots_out;
  for (size_t i = 0; i < slots.size(); ++i) {
    const size_t t = slots.size() == 1 ? count - 1 : i;
    StoreConv(s,
              state,
              head,
              rows,
              static_cast<int32_t>(t),
              slots[i],
              scratch.data());
  }
}

}  // namespace conclave::kernels::plain
