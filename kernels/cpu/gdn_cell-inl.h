// SPDX-License-Identifier: Apache-2.0
// The chunked delta rule of one value head (docs/qwen3.5-moe 3.3.1), once per
// SIMD target; #pragma once would stop Highway from including it again.
#if defined(CONCLAVE_KERNELS_CPU_GDN_CELL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_GDN_CELL_INL_H_
#undef CONCLAVE_KERNELS_CPU_GDN_CELL_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_GDN_CELL_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/limits.h"
#include "kernels/cpu/gdn_step-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

constexpr int64_t kCell = limits::kGdnCellRows;
static_assert(kCell % kStepMax == 0);

// Memory of one cell.
struct CellScratch {
  float *q, *k, *k_transposed;  // [kCell, dk] twice, [dk, kCell]
  float *a, *p;                 // [kCell, kCell]
  float* d;                     // [kCell, dv]

  static size_t Size(int64_t dk, int64_t dv) {
    return kCell * (3 * dk + dv + 2 * kCell);
  }
  CellScratch(float* memory, int64_t dk) {
    q = memory;
    k = q + kCell * dk;
    k_transposed = k + kCell * dk;
    a = k_transposed + kCell * dk;
    p = a + kCell * kCell;
    d = p + kCell * kCell;
  }
};

// Packs q and k: rows of a step lie whole pages apart and would share a few
// sets of the cache. Columns past n of the transpose are zeros.
HWY_INLINE void PackCell(const HeadRows& h, int64_t n, const CellScratch& s) {
  const int64_t dk = h.key_dim;
  for (int64_t t = 0; t < n; ++t) {
    std::copy_n(h.q + t * h.row, dk, s.q + t * dk);
    std::copy_n(h.k + t * h.row, dk, s.k + t * dk);
  }
  for (int64_t i = 0; i < dk; ++i) {
    float* to = s.k_transposed + i * kCell;
    for (int64_t t = 0; t < n; ++t) to[t] = s.k[t * dk + i];
    std::fill(to + n, to + kCell, 0.0f);
  }
}

// a <- -beta_i (k_i.k_j) exp(G_i - G_j) below the diagonal, p <- (q_i.k_j)
// exp(G_i - G_j) up to the diagonal. Only differences <= 0 meet exp.
HWY_INLINE void DecayMatrices(const HeadRows& h,
                              int64_t n,
                              const float* sums,
                              const CellScratch& s) {
  const F32 df;
  const hn::RebindToSigned<F32> di;
  for (int64_t i = 0; i < n; ++i) {
    const V sum = hn::Set(df, sums[i]);
    const V minus_beta = hn::Set(df, -h.beta[i * h.gate_row]);
    const auto row = hn::Set(di, static_cast<int32_t>(i));
    for (int64_t j = 0; j <= i; j += kLanes) {
      const auto column = hn::Iota(di, static_cast<int32_t>(j));
      const auto below = hn::RebindMask(df, hn::Lt(column, row));
      const auto above = hn::RebindMask(df, hn::Gt(column, row));
      const V difference =
          hn::IfThenZeroElse(above, hn::Sub(sum, hn::LoadU(df, sums + j)));
      const V decay = hn::Exp(df, difference);
      float* a = s.a + i * kCell + j;
      float* p = s.p + i * kCell + j;
      const V kk = hn::Mul(hn::Mul(minus_beta, hn::LoadU(df, a)), decay);
      hn::StoreU(hn::IfThenElseZero(below, kk), df, a);
      const V qk = hn::Mul(hn::LoadU(df, p), decay);
      hn::StoreU(hn::IfThenZeroElse(above, qk), df, p);
    }
  }
}

// d holds K S0; turns it into the corrected values: beta (V - exp(G) K S0),
// then forward substitution, four rows at a time.
HWY_INLINE void CorrectedValues(const HeadRows& h,
                                int64_t n,
                                const float* sums,
                                const CellScratch& s) {
  const F32 df;
  const int64_t dv = h.value_dim;
  for (int64_t i = 0; i < n; ++i) {
    const V decay = hn::Set(df, std::exp(sums[i]));
    const V beta = hn::Set(df, h.beta[i * h.gate_row]);
    float* d = s.d + i * dv;
    const float* v = h.v + i * h.row;
    for (int64_t j = 0; j < dv; j += kLanes) {
      const V p = LoadUpTo(d + j, dv - j);
      const V x = hn::NegMulAdd(decay, p, LoadUpTo(v + j, dv - j));
      StoreUpTo(hn::Mul(beta, x), d + j, dv - j);
    }
  }
  const auto subtract = [&](int64_t i, int64_t rows, int64_t from) HWY_ATTR {
    float* d = s.d + i * dv;
    Multiply({.a = {s.a + i * kCell + from, kCell},
              .b = {s.d + from * dv, dv},
              .in = {d, dv},
              .out = d,
              .out_row = dv,
              .rows = rows,
              .depth = i - from,
              .cols = dv});
  };
  for (int64_t i = 0; i < n; i += 4) {
    const int64_t count = std::min<int64_t>(4, n - i);
    if (i > 0) subtract(i, count, 0);
    for (int64_t r = 1; r < count; ++r) subtract(i + r, 1, i);
  }
}

// o <- o + P d, S1 = exp(G) S0 + (exp(G - G_i) K)^T d.
HWY_INLINE void ReadAndWrite(const HeadRows& h,
                             int64_t n,
                             float decay,
                             const CellScratch& s,
                             const float* in,
                             float* out) {
  const int64_t dk = h.key_dim;
  const int64_t dv = h.value_dim;
  Multiply({.a = {s.p, kCell},
            .b = {s.d, dv},
            .in = {h.o, h.o_row},
            .out = h.o,
            .out_row = h.o_row,
            .rows = n,
            .depth = n,
            .cols = dv,
            .lower = true});
  Multiply({.a = {s.k, 1, dk},
            .b = {s.d, dv},
            .in = {in, dv},
            .out = out,
            .out_row = dv,
            .rows = dk,
            .depth = n,
            .cols = dv,
            .scale = decay});
}

// n <= kCell tokens at once. in and out as in RecurrentStep.
inline HWY_NOINLINE void ChunkedCell(const HeadRows& h,
                                     int64_t n,
                                     const CellScratch& s,
                                     const float* in,
                                     float* out) {
  const int64_t dk = h.key_dim;
  const int64_t dv = h.value_dim;
  float sums[kCell + kStepMax] = {};
  float total = 0.0f;
  for (int64_t i = 0; i < n; ++i) sums[i] = total += h.g[i * h.gate_row];
  PackCell(h, n, s);
  Product with_keys{.b = {s.k_transposed, kCell},
                    .out_row = kCell,
                    .rows = n,
                    .depth = dk,
                    .cols = (n + kStep - 1) / kStep * kStep};
  with_keys.a = {s.k, dk};
  with_keys.out = s.a;
  Multiply(with_keys);
  with_keys.a = {s.q, dk};
  with_keys.out = s.p;
  Multiply(with_keys);
  DecayMatrices(h, n, sums, s);
  Product with_state{.b = {in, dv}, .rows = n, .depth = dk, .cols = dv};
  with_state.a = {s.k, dk};
  with_state.out = s.d;
  with_state.out_row = dv;
  Multiply(with_state);
  with_state.a = {s.q, dk};
  with_state.out = h.o;
  with_state.out_row = h.o_row;
  Multiply(with_state);
  CorrectedValues(h, n, sums, s);
  for (int64_t i = 0; i < n; ++i) {
    ScaleRow(std::exp(sums[i]), h.o + i * h.o_row, dv);
    ScaleRow(std::exp(total - sums[i]), s.k + i * dk, dk);
  }
  ReadAndWrite(h, n, std::exp(total), s, in, out);
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
