// SPDX-License-Identifier: Apache-2.0
// Codes, scales and biases of affine weight rows as integer products take them.
// Once per SIMD target; #pragma once would stop Highway from including it
// again.
#if defined(CONCLAVE_KERNELS_CPU_INT8_CODES_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_INT8_CODES_INL_H_
#undef CONCLAVE_KERNELS_CPU_INT8_CODES_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_INT8_CODES_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/affine_row-inl.h"
#include "kernels/int8.h"
#include "kernels/weight.h"

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

  // A power of two.
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

// Scales or biases from `from` on: `count` of them, the other lanes are zeros.
// `room`: how many may be read.
HWY_INLINE V LoadHalves(const uint16_t* from,
                        int64_t count,
                        int64_t room,
                        bool f16) {
  const hn::RebindToUnsigned<F32> d32;
  const hn::Rebind<uint16_t, F32> d16;
  uint16_t part[kLanes] = {};
  if (room < kLanes) {
    std::memcpy(part, from, static_cast<size_t>(room) * sizeof(uint16_t));
    from = part;
  }
  auto half = hn::PromoteTo(d32, hn::LoadU(d16, from));
  if (count < kLanes) {
    half =
        hn::IfThenElseZero(hn::FirstN(d32, static_cast<size_t>(count)), half);
  }
  if (!f16) return hn::BitCast(F32(), hn::ShiftLeft<16>(half));
  // As RowScales::Read has it.
  const auto moved =
      hn::Or(hn::ShiftLeft<13>(hn::And(half, hn::Set(d32, 0x7FFF))),
             hn::ShiftLeft<16>(hn::And(half, hn::Set(d32, 0x8000))));
  return hn::Mul(hn::BitCast(F32(), moved), hn::Set(F32(), 0x1p112f));
}

// One weight row.
struct Int8Row : AffineRow {
  int64_t room = 0;  // scales from the row's first to the weight's last

  Int8Row() = default;
  HWY_INLINE Int8Row(const WeightView& w, int64_t row)
      : AffineRow(w, row),
        room((w.rows - 1 - row) * w.scale_stride + w.cols / w.group) {}
  // Scales of the groups from `group` on, and what each block's sum takes.
  HWY_INLINE V Scales(int64_t group, int64_t count) const {
    return LoadHalves(scales.scales + group, count, room - group, scales.f16);
  }
  HWY_INLINE V Biases(int64_t group, int64_t count, V scale) const {
    if (scales.biases == nullptr) {
      return hn::Mul(scale, hn::Set(F32(), scales.symmetric));
    }
    return LoadHalves(scales.biases + group, count, room - group, scales.f16);
  }
};

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
