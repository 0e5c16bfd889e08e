// SPDX-License-Identifier: Apache-2.0
// The recurrent delta rule of one value head (docs/qwen3.5-moe 3.3), once per
// SIMD target; #pragma once would stop Highway from including it again.
#if defined(CONCLAVE_KERNELS_CPU_GDN_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_GDN_STEP_INL_H_
#undef CONCLAVE_KERNELS_CPU_GDN_STEP_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_GDN_STEP_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "kernels/cpu/gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

// One value head of consecutive rows; element strides from row to row.
struct HeadRows {
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  const float* q = nullptr;  // normed and scaled
  const float* k = nullptr;  // normed
  const float* v = nullptr;
  int64_t row = 0;           // stride of q, k, v
  const float* g = nullptr;  // log decay
  const float* beta = nullptr;
  int64_t gate_row = 0;
  float* o = nullptr;
  int64_t o_row = 0;

  HeadRows From(int64_t t) const {
    HeadRows rows = *this;
    rows.q += t * row;
    rows.k += t * row;
    rows.v += t * row;
    rows.g += t * gate_row;
    rows.beta += t * gate_row;
    rows.o += t * o_row;
    return rows;
  }
};

// Columns [j, j + 4 vectors) of one token: sweep 1 reads S for S^T k and
// S^T q, sweep 2 decays and writes while the columns are in the first cache.
HWY_INLINE void StepColumns(const HeadRows& h,
                            float decay,
                            float qk,
                            int64_t j,
                            const float* in,
                            float* out) {
  const F32 df;
  const int64_t dv = h.value_dim;
  const V zero = hn::Zero(df);
  V p0 = zero, p1 = zero, p2 = zero, p3 = zero;
  V r0 = zero, r1 = zero, r2 = zero, r3 = zero;
  for (int64_t i = 0; i < h.key_dim; ++i) {
    const float* s = in + i * dv + j;
    const V k = hn::Set(df, h.k[i]);
    const V q = hn::Set(df, h.q[i]);
    const V s0 = hn::LoadU(df, s);
    const V s1 = hn::LoadU(df, s + kLanes);
    const V s2 = hn::LoadU(df, s + 2 * kLanes);
    const V s3 = hn::LoadU(df, s + 3 * kLanes);
    p0 = hn::MulAdd(k, s0, p0);
    p1 = hn::MulAdd(k, s1, p1);
    p2 = hn::MulAdd(k, s2, p2);
    p3 = hn::MulAdd(k, s3, p3);
    r0 = hn::MulAdd(q, s0, r0);
    r1 = hn::MulAdd(q, s1, r1);
    r2 = hn::MulAdd(q, s2, r2);
    r3 = hn::MulAdd(q, s3, r3);
  }
  const V e = hn::Set(df, decay);
  const V beta = hn::Set(df, *h.beta);
  const float* v = h.v + j;
  const auto write = [&](int64_t at, V p) HWY_ATTR {
    return hn::Mul(beta, hn::NegMulAdd(e, p, hn::LoadU(df, v + at)));
  };
  const V d0 = write(0, p0);
  const V d1 = write(kLanes, p1);
  const V d2 = write(2 * kLanes, p2);
  const V d3 = write(3 * kLanes, p3);
  const V qkv = hn::Set(df, qk);
  float* o = h.o + j;
  hn::StoreU(hn::MulAdd(qkv, d0, hn::Mul(e, r0)), df, o);
  hn::StoreU(hn::MulAdd(qkv, d1, hn::Mul(e, r1)), df, o + kLanes);
  hn::StoreU(hn::MulAdd(qkv, d2, hn::Mul(e, r2)), df, o + 2 * kLanes);
  hn::StoreU(hn::MulAdd(qkv, d3, hn::Mul(e, r3)), df, o + 3 * kLanes);
  for (int64_t i = 0; i < h.key_dim; ++i) {
    const float* s = in + i * dv + j;
    float* to = out + i * dv + j;
    const V k = hn::Set(df, h.k[i]);
    const auto next = [&](int64_t at, V d) HWY_ATTR {
      hn::StoreU(
          hn::MulAdd(k, d, hn::Mul(e, hn::LoadU(df, s + at))), df, to + at);
    };
    next(0, d0);
    next(kLanes, d1);
    next(2 * kLanes, d2);
    next(3 * kLanes, d3);
  }
}

// The same for up to one vector of columns.
HWY_INLINE void StepTail(const HeadRows& h,
                         float decay,
                         float qk,
                         int64_t j,
                         const float* in,
                         float* out) {
  const F32 df;
  const int64_t dv = h.value_dim;
  const int64_t n = dv - j;
  V p = hn::Zero(df), r = hn::Zero(df);
  for (int64_t i = 0; i < h.key_dim; ++i) {
    const V s = LoadUpTo(in + i * dv + j, n);
    p = hn::MulAdd(hn::Set(df, h.k[i]), s, p);
    r = hn::MulAdd(hn::Set(df, h.q[i]), s, r);
  }
  const V e = hn::Set(df, decay);
  const V d =
      hn::Mul(hn::Set(df, *h.beta), hn::NegMulAdd(e, p, LoadUpTo(h.v + j, n)));
  StoreUpTo(hn::MulAdd(hn::Set(df, qk), d, hn::Mul(e, r)), h.o + j, n);
  for (int64_t i = 0; i < h.key_dim; ++i) {
    const V s = LoadUpTo(in + i * dv + j, n);
    StoreUpTo(
        hn::MulAdd(hn::Set(df, h.k[i]), d, hn::Mul(e, s)), out + i * dv + j, n);
  }
}

// One token. in and out are [key_dim, value_dim], the same or apart.
inline HWY_NOINLINE void RecurrentStep(const HeadRows& h,
                                       const float* in,
                                       float* out) {
  const float decay = std::exp(*h.g);
  const float qk = DotOf(h.q, h.k, h.key_dim);
  int64_t j = 0;
  for (; j + 4 * kLanes <= h.value_dim; j += 4 * kLanes) {
    StepColumns(h, decay, qk, j, in, out);
  }
  for (; j < h.value_dim; j += kLanes) StepTail(h, decay, qk, j, in, out);
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
