// SPDX-License-Identifier: Apache-2.0
// A register tile of dot products: rows of x times weight rows, once per SIMD
// target; #pragma once would stop Highway from including it again.
#if defined(CONCLAVE_KERNELS_CPU_DOT_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_DOT_TILE_INL_H_
#undef CONCLAVE_KERNELS_CPU_DOT_TILE_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_DOT_TILE_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

// Named members, no arrays: the compiler must keep all of them in registers.
struct RowSteps {
  V a0, b0, a1, b1, a2, b2, a3, b3;
};
struct OutSums {  // of one output, rows 0 to 3
  V r0, r1, r2, r3;
};

template <int kRows>
HWY_INLINE void LoadRows(const float* const (&x)[4], int64_t i, RowSteps& s) {
  const F32 df;
  s.a0 = hn::LoadU(df, x[0] + i);
  s.b0 = hn::LoadU(df, x[0] + i + kLanes);
  if constexpr (kRows > 1) {
    s.a1 = hn::LoadU(df, x[1] + i);
    s.b1 = hn::LoadU(df, x[1] + i + kLanes);
  }
  if constexpr (kRows > 2) {
    s.a2 = hn::LoadU(df, x[2] + i);
    s.b2 = hn::LoadU(df, x[2] + i + kLanes);
  }
  if constexpr (kRows > 3) {
    s.a3 = hn::LoadU(df, x[3] + i);
    s.b3 = hn::LoadU(df, x[3] + i + kLanes);
  }
}

// The one place where products are summed. Every (row, output) pair has one
// accumulator that takes the same two MulAdds per step in every tile shape:
// this is why the bits of a row do not depend on other rows.
template <int kRows, class Row>
HWY_INLINE void AddStep(const RowSteps& x,
                        const Row& w,
                        int64_t i,
                        OutSums& s) {
  V a, b;
  w.Load(i, a, b);
  s.r0 = hn::MulAdd(x.b0, b, hn::MulAdd(x.a0, a, s.r0));
  if constexpr (kRows > 1) {
    s.r1 = hn::MulAdd(x.b1, b, hn::MulAdd(x.a1, a, s.r1));
  }
  if constexpr (kRows > 2) {
    s.r2 = hn::MulAdd(x.b2, b, hn::MulAdd(x.a2, a, s.r2));
  }
  if constexpr (kRows > 3) {
    s.r3 = hn::MulAdd(x.b3, b, hn::MulAdd(x.a3, a, s.r3));
  }
}

template <int kRows, int kOuts, class Row>
HWY_INLINE void AddSteps(const RowSteps& x,
                         const Row (&w)[kOuts],
                         int64_t i,
                         OutSums& s0,
                         OutSums& s1,
                         OutSums& s2,
                         OutSums& s3,
                         OutSums& s4,
                         OutSums& s5,
                         OutSums& s6,
                         OutSums& s7) {
  AddStep<kRows>(x, w[0], i, s0);
  AddStep<kRows>(x, w[1], i, s1);
  AddStep<kRows>(x, w[2], i, s2);
  AddStep<kRows>(x, w[3], i, s3);
  if constexpr (kOuts == 8) {
    AddStep<kRows>(x, w[4], i, s4);
    AddStep<kRows>(x, w[5], i, s5);
    AddStep<kRows>(x, w[6], i, s6);
    AddStep<kRows>(x, w[7], i, s7);
  }
}

// kRows rows times kOuts weight rows; sink(row of tile, first out of tile,
// four sums). x is packed for T.
template <int kRows, int kOuts, class Row, class Sink>
HWY_NOINLINE void DotTile(const float* const (&x)[4],
                          const Row (&w)[kOuts],
                          int64_t cols,
                          const Sink& sink) {
  static_assert(kOuts == 4 || kOuts == 8);
  const V zero = hn::Zero(F32());
  const OutSums none{zero, zero, zero, zero};
  OutSums s0 = none, s1 = none, s2 = none, s3 = none;
  OutSums s4 = none, s5 = none, s6 = none, s7 = none;
  RowSteps steps{zero, zero, zero, zero, zero, zero, zero, zero};
  int64_t i = 0;
  for (; i + kStep <= cols; i += kStep) {
    LoadRows<kRows>(x, i, steps);
    AddSteps<kRows>(steps, w, i, s0, s1, s2, s3, s4, s5, s6, s7);
  }
  if constexpr (Row::kMayEndInStep) {
    if (i < cols) {
      using T = std::remove_cvref_t<decltype(*w[0].data)>;
      T tail[kOuts][kStep] = {};
      Row rows[kOuts];
      for (int o = 0; o < kOuts; ++o) {
        std::memcpy(tail[o], w[o].data + i, (cols - i) * sizeof(T));
        rows[o] = w[o];
        rows[o].data = tail[o];
        rows[o].begin = i;
      }
      LoadRows<kRows>(x, i, steps);
      AddSteps<kRows>(steps, rows, i, s0, s1, s2, s3, s4, s5, s6, s7);
    }
  }
  sink(0, 0, SumFour(s0.r0, s1.r0, s2.r0, s3.r0));
  if constexpr (kOuts == 8) sink(0, 4, SumFour(s4.r0, s5.r0, s6.r0, s7.r0));
  if constexpr (kRows > 1) sink(1, 0, SumFour(s0.r1, s1.r1, s2.r1, s3.r1));
  if constexpr (kRows > 2) sink(2, 0, SumFour(s0.r2, s1.r2, s2.r2, s3.r2));
  if constexpr (kRows > 3) sink(3, 0, SumFour(s0.r3, s1.r3, s2.r3, s3.r3));
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
