// SPDX-License-Identifier: Apache-2.0
// Small vector loops of the sequence blocks, once per SIMD target. Every sum
// runs in an order that depends on its length alone.

#if defined(CONCLAVE_KERNELS_SEQUENCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_SEQUENCE_INL_H_
#undef CONCLAVE_KERNELS_SEQUENCE_INL_H_
#else
#define CONCLAVE_KERNELS_SEQUENCE_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

namespace hs = hwy::HWY_NAMESPACE;
using SF = hs::ScalableTag<float>;
using SV = hs::Vec<SF>;

HWY_INLINE int64_t Width() { return static_cast<int64_t>(hs::Lanes(SF())); }

HWY_INLINE float SumLanes(SV v) { return hs::GetLane(hs::SumOfLanes(SF(), v)); }

// sum a[i] * b[i].
HWY_INLINE float Dot(const float* a, const float* b, int64_t n) {
  const SF d;
  const int64_t w = Width();
  SV s0 = hs::Zero(d), s1 = hs::Zero(d);
  int64_t i = 0;
  for (; i + 2 * w <= n; i += 2 * w) {
    s0 = hs::MulAdd(hs::LoadU(d, a + i), hs::LoadU(d, b + i), s0);
    s1 = hs::MulAdd(hs::LoadU(d, a + i + w), hs::LoadU(d, b + i + w), s1);
  }
  float sum = SumLanes(hs::Add(s0, s1));
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

HWY_INLINE void Scale(float* x, int64_t n, float factor) {
  const SF d;
  const SV f = hs::Set(d, factor);
  int64_t i = 0;
  for (; i + Width() <= n; i += Width()) {
    hs::StoreU(hs::Mul(hs::LoadU(d, x + i), f), d, x + i);
  }
  for (; i < n; ++i) x[i] *= factor;
}

HWY_INLINE SV Sigmoid(SV x) {
  const SF d;
  const SV one = hs::Set(d, 1.0f);
  return hs::Div(one, hs::Add(one, hs::Exp(d, hs::Neg(x))));
}

HWY_INLINE float SigmoidOf(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// A matrix by its first element and the steps to the next row and column.
struct Matrix {
  const float* data;
  int64_t row_step;
  int64_t col_step;
};

// c[m][n] += sum_k a[m][k] * b[k][n], k ascending; b and c are row-major with
// ldb and ldc elements a row. R rows of c at a time.
template <int R>
HWY_INLINE void GemmRows(const Matrix& a,
                         const float* b,
                         int64_t ldb,
                         float* c,
                         int64_t ldc,
                         int64_t n,
                         int64_t k) {
  const SF d;
  const int64_t w = Width();
  int64_t j = 0;
  for (; j + 2 * w <= n; j += 2 * w) {
    SV s0[R], s1[R];
    for (int r = 0; r < R; ++r) {
      s0[r] = hs::LoadU(d, c + r * ldc + j);
      s1[r] = hs::LoadU(d, c + r * ldc + j + w);
    }
    for (int64_t i = 0; i < k; ++i) {
      const SV b0 = hs::LoadU(d, b + i * ldb + j);
      const SV b1 = hs::LoadU(d, b + i * ldb + j + w);
      for (int r = 0; r < R; ++r) {
        const SV x = hs::Set(d, a.data[r * a.row_step + i * a.col_step]);
        s0[r] = hs::MulAdd(x, b0, s0[r]);
        s1[r] = hs::MulAdd(x, b1, s1[r]);
      }
    }
    for (int r = 0; r < R; ++r) {
      hs::StoreU(s0[r], d, c + r * ldc + j);
      hs::StoreU(s1[r], d, c + r * ldc + j + w);
    }
  }
  for (; j < n; ++j) {
    for (int r = 0; r < R; ++r) {
      float sum = c[r * ldc + j];
      for (int64_t i = 0; i < k; ++i) {
        sum = std::fma(
            a.data[r * a.row_step + i * a.col_step], b[i * ldb + j], sum);
      }
      c[r * ldc + j] = sum;
    }
  }
}

HWY_INLINE void Gemm(Matrix a,
                     const float* b,
                     int64_t ldb,
                     float* c,
                     int64_t ldc,
                     int64_t m,
                     int64_t n,
                     int64_t k) {
  int64_t r = 0;
  for (; r + 4 <= m; r += 4) {
    GemmRows<4>(a, b, ldb, c + r * ldc, ldc, n, k);
    a.data += 4 * a.row_step;
  }
  for (; r < m; ++r) {
    GemmRows<1>(a, b, ldb, c + r * ldc, ldc, n, k);
    a.data += a.row_step;
  }
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // CONCLAVE_KERNELS_SEQUENCE_INL_H_
