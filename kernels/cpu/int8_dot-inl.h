// SPDX-License-Identifier: Apache-2.0
// Integer dot products of int8 rows with the codes of affine weights: scales
// are applied once per group. Once per SIMD target; #pragma once would stop
// Highway from including it again.
#if defined(CONCLAVE_KERNELS_CPU_INT8_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_INT8_DOT_INL_H_
#undef CONCLAVE_KERNELS_CPU_INT8_DOT_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_INT8_DOT_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/int8_codes-inl.h"
#include "kernels/cpu/int8_row-inl.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/int8.h"
#include "kernels/weight.h"

// For lambdas that take sums by reference: a call would spill them.
#undef CONCLAVE_INLINE
#define CONCLAVE_INLINE __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

// Unit of one row of x: sum += (products * scale of x) * scale of w.
template <bool kVnni>
HWY_INLINE void AddUnit(const float* x, VCodes a, VCodes b, V scale, V& sum) {
  const auto* bytes = reinterpret_cast<const int8_t*>(x);
  VInts products = hn::Zero(Ints());
  products = AddProducts<kVnni>(products, a, hn::LoadU(Int8s(), bytes));
  products =
      AddProducts<kVnni>(products, b, hn::LoadU(Int8s(), bytes + 4 * kLanes));
  const V scaled =
      hn::Mul(hn::ConvertTo(F32(), products), hn::LoadU(F32(), x + 2 * kLanes));
  sum = hn::MulAdd(scaled, scale, sum);
}

// Rows of one pass over a weight row, and their sums: named, no array, as they
// must stay in registers.
constexpr int64_t kInt8Rows = 8;
struct RowSums {
  V r0, r1, r2, r3, r4, r5, r6, r7;
};

template <int kRows, class Body>
HWY_INLINE void ForRows(const Body& body, RowSums& s) {
  body(0, s.r0);
  if constexpr (kRows > 1) body(1, s.r1);
  if constexpr (kRows > 2) {
    body(2, s.r2);
    body(3, s.r3);
  }
  if constexpr (kRows > 4) {
    body(4, s.r4);
    body(5, s.r5);
    body(6, s.r6);
    body(7, s.r7);
  }
}

// sums[row][of][]: the lanes' sums of kRows rows and one weight row. Every
// (row, output) pair takes the same steps however many rows there are: this is
// why the bits of a row do not depend on other rows. One weight row after the
// other: memory gives a straight stream twice what it gives to several.
template <int kRows, int kBits, bool kVnni>
HWY_INLINE void AddWeightRow(const float* const* x,
                             const Int8Row& w,
                             int64_t cols,
                             int64_t of,
                             float (&sums)[kInt8Rows][4][kLanes]) {
  constexpr int64_t kUnitBytes = kUnit * kBits / 8;
  const F32 df;
  const V zero = hn::Zero(df);
  RowSums s{zero, zero, zero, zero, zero, zero, zero, zero};
  const GroupPlaces& places = PlacesOf(w.scales.group);
  const int64_t units = cols / kUnit, groups = cols / places.group;
  const int64_t blocks = Int8Units(cols) * kUnitFloats;
  V scales = zero;
  const auto add = [&](const uint8_t* codes,
                       int64_t u) HWY_ATTR CONCLAVE_INLINE {
    const V scale =
        TakeLanes(scales, places.units[u & (places.unit_count - 1)]);
    VCodes a, b;
    UnitCodes<kBits>::Load(codes, a, b);
    ForRows<kRows>(
        [&](int r, V& sum) HWY_ATTR CONCLAVE_INLINE {
          AddUnit<kVnni>(x[r] + u * kUnitFloats, a, b, scale, sum);
        },
        s);
  };
  for (int64_t g = 0; g < groups; g += kLanes) {
    const int64_t count = std::min(kLanes, groups - g);
    scales = w.Scales(g, count);
    const V biases = w.Biases(g, count, scales);
    for (int64_t i = 0; i < places.sum_count; ++i) {
      const V bias = TakeLanes(biases, places.sums[i]);
      const int64_t at = blocks + g * places.sum_count + i * kLanes;
      ForRows<kRows>(
          [&](int r, V& sum) HWY_ATTR CONCLAVE_INLINE {
            sum = hn::MulAdd(hn::LoadU(df, x[r] + at), bias, sum);
          },
          s);
    }
    const int64_t first = g * places.group / kUnit;
    const int64_t last = std::min(units, first + places.unit_count);
    for (int64_t u = first; u < last; ++u) add(w.codes + u * kUnitBytes, u);
  }
  if (units * kUnit < cols) {  // the scales are those of the last groups
    uint8_t codes[kUnitBytes] = {};
    const int64_t at = units * kUnitBytes;
    std::memcpy(
        codes, w.codes + at, static_cast<size_t>(cols * kBits / 8 - at));
    add(codes, units);
  }
  ForRows<kRows>(
      [&](int r, V& sum)
          HWY_ATTR CONCLAVE_INLINE { hn::Store(sum, df, sums[r][of]); },
      s);
}

// out[row][0, 4): kRows rows times the four outputs from `first` on; past
// `end` nothing in particular.
template <int kRows, int kBits, bool kVnni>
HWY_NOINLINE void Int8Tile(const float* const* x,
                           const WeightView& w,
                           int64_t first,
                           int64_t end,
                           float (&out)[kInt8Rows][4]) {
  HWY_ALIGN float sums[kInt8Rows][4][kLanes];
  const F32 df;
  for (int64_t o = 0; o < 4; ++o) {
    const Int8Row row(w, std::min(first + o, end - 1));
    AddWeightRow<kRows, kBits, kVnni>(x, row, w.cols, o, sums);
  }
  for (int r = 0; r < kRows; ++r) {
    hn::StoreU(SumFour(hn::Load(df, sums[r][0]),
                       hn::Load(df, sums[r][1]),
                       hn::Load(df, sums[r][2]),
                       hn::Load(df, sums[r][3])),
               F32x4(),
               out[r]);
  }
}

// Eight rows of more columns do not stay in the first cache while weights
// stream by; four do.
constexpr int64_t kInt8ColumnsMax = 2048;

template <int kBits, bool kVnni, class Sink>
HWY_NOINLINE void Int8DotBlock(const PackedRows& x,
                               int64_t rows,
                               const WeightView& w,
                               int64_t begin,
                               int64_t end,
                               const Sink& sink) {
  float sums[kInt8Rows][4];
  for (int64_t r = 0; r < rows;) {
    const float* tile[kInt8Rows];
    for (int64_t i = 0; i < kInt8Rows; ++i) {
      tile[i] = x.at(std::min(r + i, rows - 1));
    }
    const int64_t left = rows - r;
    const int64_t most = w.cols > kInt8ColumnsMax ? 4 : 8;
    const int64_t count = std::min<int64_t>(most,
                                            left >= 8   ? 8
                                            : left >= 4 ? 4
                                            : left >= 2 ? 2
                                                        : 1);
    for (int64_t o = begin; o < end; o += 4) {
      if (count == 8) {
        Int8Tile<8, kBits, kVnni>(tile, w, o, end, sums);
      } else if (count == 4) {
        Int8Tile<4, kBits, kVnni>(tile, w, o, end, sums);
      } else if (count == 2) {
        Int8Tile<2, kBits, kVnni>(tile, w, o, end, sums);
      } else {
        Int8Tile<1, kBits, kVnni>(tile, w, o, end, sums);
      }
      for (int64_t i = 0; i < count; ++i) {
        const V4 four = hn::LoadU(F32x4(), sums[i]);
        sink(r + i, o, four, std::min<int64_t>(4, end - o));
      }
    }
    r += count;
  }
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
