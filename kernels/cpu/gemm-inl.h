// SPDX-License-Identifier: Apache-2.0
// Small float32 matrix products and element-wise helpers of the sequence
// blocks, once per SIMD target; #pragma once would stop Highway from including
// it again.
#if defined(CONCLAVE_KERNELS_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_GEMM_INL_H_
#undef CONCLAVE_KERNELS_CPU_GEMM_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_GEMM_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

// The first n lanes, zeros after them; n may be anything.
HWY_INLINE V LoadUpTo(const float* from, int64_t n) {
  const F32 df;
  if (n >= kLanes) return hn::LoadU(df, from);
  float all[kLanes] = {};
  if (n > 0) std::memcpy(all, from, n * sizeof(float));
  return hn::LoadU(df, all);
}

HWY_INLINE void StoreUpTo(V v, float* to, int64_t n) {
  const F32 df;
  if (n >= kLanes) {
    hn::StoreU(v, df, to);
  } else if (n > 0) {
    float all[kLanes];
    hn::StoreU(v, df, all);
    std::memcpy(to, all, n * sizeof(float));
  }
}

// 1 + exp(-x). Highway's Exp is not defined above 104.
HWY_INLINE V OnePlusExpMinus(V x) {
  const F32 df;
  const V power = hn::Min(hn::Neg(x), hn::Set(df, 88.0f));
  return hn::Add(hn::Set(df, 1.0f), hn::Exp(df, power));
}

HWY_INLINE V SiluOf(V x) { return hn::Div(x, OnePlusExpMinus(x)); }

HWY_INLINE float SumLanes(V v) {
  const V zero = hn::Zero(F32());
  return hn::GetLane(SumFour(v, zero, zero, zero));
}

HWY_INLINE float DotOf(const float* a, const float* b, int64_t n) {
  V sum = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += kLanes) {
    sum = hn::MulAdd(LoadUpTo(a + i, n - i), LoadUpTo(b + i, n - i), sum);
  }
  return SumLanes(sum);
}

HWY_INLINE void ScaleRow(float factor, float* x, int64_t n) {
  const V f = hn::Set(F32(), factor);
  for (int64_t i = 0; i < n; i += kLanes) {
    StoreUpTo(hn::Mul(LoadUpTo(x + i, n - i), f), x + i, n - i);
  }
}

// out = scale * in + a b. Rows of b, in and out are contiguous; a is read one
// element at a time, with any strides, so that it may be a transpose. out may
// be in, and no part of a or b. An element of out is one chain of MulAdds in
// the order of depth: its bits do not depend on the other rows or columns.
struct Matrix {
  const float* data = nullptr;
  int64_t row = 0;  // elements from one row to the next
  int64_t col = 1;
};
struct Product {
  Matrix a = {};
  Matrix b = {};
  Matrix in = {};  // data nullptr: zeros
  float* out = nullptr;
  int64_t out_row = 0;
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t cols = 0;
  float scale = 1.0f;
  bool lower = false;  // a is lower triangular: zeros right of the diagonal
};

template <bool kTail>
HWY_INLINE V LoadColumns(const float* from, int64_t n) {
  if constexpr (kTail) return LoadUpTo(from, n);
  return hn::LoadU(F32(), from);
}

template <bool kTail>
HWY_INLINE void InitRow(const Product& p, int64_t r, int64_t j, V& c0, V& c1) {
  if (p.in.data == nullptr) return;
  const V scale = hn::Set(F32(), p.scale);
  const float* in = p.in.data + r * p.in.row + j;
  c0 = hn::Mul(scale, LoadColumns<kTail>(in, p.cols - j));
  c1 = hn::Mul(scale, LoadColumns<kTail>(in + kLanes, p.cols - j - kLanes));
}

template <bool kTail>
HWY_INLINE void StoreRow(const Product& p, int64_t r, int64_t j, V c0, V c1) {
  float* out = p.out + r * p.out_row + j;
  if constexpr (kTail) {
    StoreUpTo(c0, out, p.cols - j);
    StoreUpTo(c1, out + kLanes, p.cols - j - kLanes);
  } else {
    hn::StoreU(c0, F32(), out);
    hn::StoreU(c1, F32(), out + kLanes);
  }
}

// Rows [r, r + kRows), columns [j, j + 2 vectors). Named accumulators, no
// arrays: the compiler must keep all of them in registers.
template <int kRows, bool kTail>
HWY_INLINE void ProductTile(const Product& p, int64_t r, int64_t j) {
  const F32 df;
  const V zero = hn::Zero(df);
  V c00 = zero, c01 = zero, c10 = zero, c11 = zero;
  V c20 = zero, c21 = zero, c30 = zero, c31 = zero;
  InitRow<kTail>(p, r, j, c00, c01);
  if constexpr (kRows > 1) InitRow<kTail>(p, r + 1, j, c10, c11);
  if constexpr (kRows > 2) InitRow<kTail>(p, r + 2, j, c20, c21);
  if constexpr (kRows > 3) InitRow<kTail>(p, r + 3, j, c30, c31);
  const float* a0 = p.a.data + r * p.a.row;
  const float* a1 = kRows > 1 ? a0 + p.a.row : a0;
  const float* a2 = kRows > 2 ? a1 + p.a.row : a0;
  const float* a3 = kRows > 3 ? a2 + p.a.row : a0;
  const float* b = p.b.data + j;
  const int64_t depth = p.lower ? std::min(p.depth, r + kRows) : p.depth;
  for (int64_t k = 0; k < depth; ++k, b += p.b.row) {
    const V b0 = LoadColumns<kTail>(b, p.cols - j);
    const V b1 = LoadColumns<kTail>(b + kLanes, p.cols - j - kLanes);
    const int64_t at = k * p.a.col;
    const V x0 = hn::Set(df, a0[at]);
    c00 = hn::MulAdd(x0, b0, c00);
    c01 = hn::MulAdd(x0, b1, c01);
    if constexpr (kRows > 1) {
      const V x1 = hn::Set(df, a1[at]);
      c10 = hn::MulAdd(x1, b0, c10);
      c11 = hn::MulAdd(x1, b1, c11);
    }
    if constexpr (kRows > 2) {
      const V x2 = hn::Set(df, a2[at]);
      c20 = hn::MulAdd(x2, b0, c20);
      c21 = hn::MulAdd(x2, b1, c21);
    }
    if constexpr (kRows > 3) {
      const V x3 = hn::Set(df, a3[at]);
      c30 = hn::MulAdd(x3, b0, c30);
      c31 = hn::MulAdd(x3, b1, c31);
    }
  }
  StoreRow<kTail>(p, r, j, c00, c01);
  if constexpr (kRows > 1) StoreRow<kTail>(p, r + 1, j, c10, c11);
  if constexpr (kRows > 2) StoreRow<kTail>(p, r + 2, j, c20, c21);
  if constexpr (kRows > 3) StoreRow<kTail>(p, r + 3, j, c30, c31);
}

template <bool kTail>
HWY_INLINE void ProductColumns(const Product& p, int64_t j) {
  int64_t r = 0;
  for (; r + 4 <= p.rows; r += 4) ProductTile<4, kTail>(p, r, j);
  switch (p.rows - r) {
    case 3:
      return ProductTile<3, kTail>(p, r, j);
    case 2:
      return ProductTile<2, kTail>(p, r, j);
    case 1:
      return ProductTile<1, kTail>(p, r, j);
  }
}

// Column panels outside: two vectors of each row of b stay in the first cache.
inline HWY_NOINLINE void Multiply(const Product& p) {
  int64_t j = 0;
  for (; j + kStep <= p.cols; j += kStep) ProductColumns<false>(p, j);
  if (j < p.cols) ProductColumns<true>(p, j);
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
