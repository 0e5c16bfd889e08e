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
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/affine_row-inl.h"
#include "kernels/cpu/dot_tile-inl.h"
#include "kernels/cpu/int8_row-inl.h"
#include "kernels/weight.h"

// For lambdas that take sums by reference: a call would spill them.
#undef CONCLAVE_INLINE
#define CONCLAVE_INLINE __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

using Codes = hn::Repartition<uint8_t, F32>;
using Int8s = hn::Repartition<int8_t, F32>;
using VCodes = hn::Vec<Codes>;
using VInts = hn::Vec<Ints>;

// sum[lane] += four codes times four int8s, exactly: both forms give the same
// bits. On some targets the products of a vector mix its lanes; there a vector
// lies in one block.
template <bool kVnni>
HWY_INLINE VInts AddProducts(VInts sum, VCodes codes, hn::Vec<Int8s> x) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (kVnni) {
    // Not an intrinsic: the target's own instructions do not include it.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(codes.raw), "vm"(x.raw));
    return sum;
  }
#endif
  const hn::Repartition<int16_t, F32> d16;
  const auto c = hn::BitCast(d16, codes);
  const auto b = hn::BitCast(d16, x);
  const auto c_even = hn::And(c, hn::Set(d16, 0xFF));
  const auto c_odd = hn::And(hn::ShiftRight<8>(c), hn::Set(d16, 0xFF));
  const auto x_even = hn::ShiftRight<8>(hn::ShiftLeft<8>(b));
  const auto x_odd = hn::ShiftRight<8>(b);
  VInts other = hn::Zero(Ints());
  sum = hn::ReorderWidenMulAccumulate(Ints(), c_even, x_even, sum, other);
  sum = hn::ReorderWidenMulAccumulate(Ints(), c_odd, x_odd, sum, other);
  return hn::Add(sum, other);
}

// Does this CPU multiply and add four bytes at once?
inline bool HasVnni() {
#if HWY_TARGET == HWY_AVX3
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
#else
  return false;
#endif
}

// The codes of one unit of a weight row, in the order of PackInt8Block.
template <int kBits>
struct UnitCodes;

template <>
struct UnitCodes<4> {
  static HWY_INLINE void Load(const uint8_t* from, VCodes& a, VCodes& b) {
    const Codes d;
    const VCodes pairs = hn::LoadU(d, from);
    a = hn::And(pairs, hn::Set(d, 15));
    b = hn::ShiftRight<4>(pairs);
  }
};

template <>
struct UnitCodes<8> {
  static HWY_INLINE void Load(const uint8_t* from, VCodes& a, VCodes& b) {
    const Codes d;
    const hn::Repartition<uint32_t, F32> d32;
    const auto low = hn::BitCast(d32, hn::LoadU(d, from));
    const auto high = hn::BitCast(d32, hn::LoadU(d, from + 4 * kLanes));
    a = hn::BitCast(d, hn::ConcatEven(d32, high, low));
    b = hn::BitCast(d, hn::ConcatOdd(d32, high, low));
  }
};

// Which of a vector of a row's group values the lanes of a unit take, for each
// of the units that the vector serves; and likewise for the sums of blocks.
struct GroupPlaces {
  static constexpr int64_t kUnitsMax = kInt8GroupMax / 8;
  static constexpr int64_t kSumsMax = kInt8GroupMax / kInt8Block;
  int64_t group, unit_count, sum_count;
  HWY_ALIGN int32_t units[kUnitsMax][kLanes];
  HWY_ALIGN int32_t sums[kSumsMax][kLanes];

  constexpr explicit GroupPlaces(int64_t columns)
      : group(columns),
        unit_count(columns / 8),
        sum_count(columns / kInt8Block),
        units(),
        sums() {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      for (int64_t u = 0; u < unit_count; ++u) {
        units[u][lane] = static_cast<int32_t>((u * kLanes + lane) / unit_count);
      }
      for (int64_t s = 0; s < sum_count; ++s) {
        sums[s][lane] = static_cast<int32_t>((s * kLanes + lane) / sum_count);
      }
    }
  }
};
inline constexpr GroupPlaces kPlacesOf32(32), kPlacesOf64(64),
    kPlacesOf128(128);

HWY_INLINE const GroupPlaces& PlacesOf(int64_t group) {
  return group == 32 ? kPlacesOf32 : group == 64 ? kPlacesOf64 : kPlacesOf128;
}

HWY_INLINE V TakeLanes(V from, const int32_t* places) {
  const auto at = hn::IndicesFromVec(F32(), hn::Load(Ints(), places));
  return hn::TableLookupLanes(from, at);
}

// kLanes scales or biases from `from`, of which `count` are there.
HWY_INLINE V LoadHalves(const uint16_t* from, int64_t count, bool f16) {
  const hn::RebindToUnsigned<F32> d32;
  const hn::Rebind<uint16_t, F32> d16;
  uint16_t part[kLanes] = {};
  if (count < kLanes) {
    std::memcpy(part, from, static_cast<size_t>(count) * sizeof(uint16_t));
    from = part;
  }
  const auto half = hn::PromoteTo(d32, hn::LoadU(d16, from));
  if (!f16) return hn::BitCast(F32(), hn::ShiftLeft<16>(half));
  // As RowScales::Read has it.
  const auto moved =
      hn::Or(hn::ShiftLeft<13>(hn::And(half, hn::Set(d32, 0x7FFF))),
             hn::ShiftLeft<16>(hn::And(half, hn::Set(d32, 0x8000))));
  return hn::Mul(hn::BitCast(F32(), moved), hn::Set(F32(), 0x1p112f));
}

// One weight row.
struct Int8Row : AffineRow {
  Int8Row() = default;
  HWY_INLINE Int8Row(const WeightView& w, int64_t row) : AffineRow(w, row) {}
  // Scales of the groups from `group` on, and what each block's sum takes.
  HWY_INLINE V Scales(int64_t group, int64_t count) const {
    return LoadHalves(scales.scales + group, count, scales.f16);
  }
  HWY_INLINE V Biases(int64_t group, int64_t count, V scale) const {
    if (scales.biases == nullptr) {
      return hn::Mul(scale, hn::Set(F32(), scales.symmetric));
    }
    return LoadHalves(scales.biases + group, count, scales.f16);
  }
};

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

template <int kRows, bool kVnni>
HWY_INLINE void AddUnits(const float* const (&x)[4],
                         int64_t at,
                         VCodes a,
                         VCodes b,
                         V scale,
                         OutSums& s) {
  AddUnit<kVnni>(x[0] + at, a, b, scale, s.r0);
  if constexpr (kRows > 1) AddUnit<kVnni>(x[1] + at, a, b, scale, s.r1);
  if constexpr (kRows > 2) AddUnit<kVnni>(x[2] + at, a, b, scale, s.r2);
  if constexpr (kRows > 3) AddUnit<kVnni>(x[3] + at, a, b, scale, s.r3);
}

// What biases add: each block's sum times its group's bias.
template <int kRows>
HWY_INLINE void AddBiases(const float* const (&x)[4],
                          int64_t at,
                          V bias,
                          OutSums& s) {
  const F32 df;
  s.r0 = hn::MulAdd(hn::LoadU(df, x[0] + at), bias, s.r0);
  if constexpr (kRows > 1) {
    s.r1 = hn::MulAdd(hn::LoadU(df, x[1] + at), bias, s.r1);
  }
  if constexpr (kRows > 2) {
    s.r2 = hn::MulAdd(hn::LoadU(df, x[2] + at), bias, s.r2);
  }
  if constexpr (kRows > 3) {
    s.r3 = hn::MulAdd(hn::LoadU(df, x[3] + at), bias, s.r3);
  }
}

// The outputs of a tile one after the other: named, no arrays, as the sums
// must stay in registers.
template <int kOuts, class Body>
HWY_INLINE void ForOuts(const Body& body,
                        OutSums& s0,
                        OutSums& s1,
                        OutSums& s2,
                        OutSums& s3,
                        OutSums& s4,
                        OutSums& s5,
                        OutSums& s6,
                        OutSums& s7) {
  body(0, s0);
  body(1, s1);
  body(2, s2);
  body(3, s3);
  if constexpr (kOuts == 8) {
    body(4, s4);
    body(5, s5);
    body(6, s6);
    body(7, s7);
  }
}

// The last, unfinished units of weight rows, with zeros after them.
template <int kOuts, int kBits>
HWY_INLINE void CopyTails(const Int8Row* w,
                          int64_t cols,
                          uint8_t (&tail)[kOuts][kUnit * kBits / 8]) {
  const int64_t from = cols / kUnit * kUnit * kBits / 8;
  const auto bytes = static_cast<size_t>(cols * kBits / 8 - from);
  std::memset(tail, 0, sizeof(tail));
  for (int o = 0; o < kOuts; ++o)
    std::memcpy(tail[o], w[o].codes + from, bytes);
}

// kRows rows times kOuts weight rows: out[row][o]. x is packed by
// PackInt8Block. As in dot_tile-inl.h, every (row, output) pair takes the same
// steps in every tile shape.
template <int kRows, int kOuts, int kBits, bool kVnni>
HWY_NOINLINE void Int8Tile(const float* const (&x)[4],
                           const Int8Row* w,
                           int64_t cols,
                           float (&out)[4][8]) {
  constexpr int64_t kUnitBytes = kUnit * kBits / 8;
  const F32 df;
  const V zero = hn::Zero(df);
  const OutSums none{zero, zero, zero, zero};
  OutSums s0 = none, s1 = none, s2 = none, s3 = none;
  OutSums s4 = none, s5 = none, s6 = none, s7 = none;
  const GroupPlaces& places = PlacesOf(w[0].scales.group);
  const int64_t units = Int8Units(cols), groups = cols / places.group;
  HWY_ALIGN float scale[kOuts][kLanes];
  HWY_ALIGN uint8_t tail[kOuts][kUnitBytes];
  if (units * kUnit > cols) CopyTails<kOuts, kBits>(w, cols, tail);
  for (int64_t g = 0; g < groups; g += kLanes) {
    const int64_t count = std::min(kLanes, groups - g);
    const int64_t block = units * kUnitFloats + g * places.sum_count;
    const auto begin = [&](int o, OutSums& s) HWY_ATTR CONCLAVE_INLINE {
      const V scales = w[o].Scales(g, count);
      hn::Store(scales, df, scale[o]);
      const V biases = w[o].Biases(g, count, scales);
      for (int64_t i = 0; i < places.sum_count; ++i) {
        AddBiases<kRows>(
            x, block + i * kLanes, TakeLanes(biases, places.sums[i]), s);
      }
    };
    ForOuts<kOuts>(begin, s0, s1, s2, s3, s4, s5, s6, s7);
    const int64_t first = g * places.group / kUnit;
    const int64_t last = std::min(units, first + places.unit_count);
    for (int64_t u = first; u < last; ++u) {
      const int32_t* lanes = places.units[u - first];
      const bool whole = (u + 1) * kUnit <= cols;
      const auto unit = [&](int o, OutSums& s) HWY_ATTR CONCLAVE_INLINE {
        VCodes a, b;
        UnitCodes<kBits>::Load(
            whole ? w[o].codes + u * kUnitBytes : tail[o], a, b);
        const V scales = TakeLanes(hn::Load(df, scale[o]), lanes);
        AddUnits<kRows, kVnni>(x, u * kUnitFloats, a, b, scales, s);
      };
      ForOuts<kOuts>(unit, s0, s1, s2, s3, s4, s5, s6, s7);
    }
  }
  const F32x4 d4;
  hn::StoreU(SumFour(s0.r0, s1.r0, s2.r0, s3.r0), d4, out[0]);
  if constexpr (kOuts == 8) {
    hn::StoreU(SumFour(s4.r0, s5.r0, s6.r0, s7.r0), d4, out[0] + 4);
  }
  if constexpr (kRows > 1) {
    hn::StoreU(SumFour(s0.r1, s1.r1, s2.r1, s3.r1), d4, out[1]);
  }
  if constexpr (kRows > 2) {
    hn::StoreU(SumFour(s0.r2, s1.r2, s2.r2, s3.r2), d4, out[2]);
  }
  if constexpr (kRows > 3) {
    hn::StoreU(SumFour(s0.r3, s1.r3, s2.r3, s3.r3), d4, out[3]);
  }
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
