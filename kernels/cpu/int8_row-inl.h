// SPDX-License-Identifier: Apache-2.0
// Rows of x rounded to int8 (kernels/int8.h), packed for integer products with
// the codes of affine weights. Once per SIMD target; #pragma once would stop
// Highway from including it again.
//
// A unit is as many columns as one vector's 32-bit lanes times 8: lane l of a
// unit's products belongs to its columns [8 l, 8 l + 8). Per unit a packed row
// has two vectors of bytes (which four of the eight columns go to which of
// them depends on how the weight's codes unpack) and one vector with the scale
// of each lane. After the units: the sum of each block, as a float.
#if defined(CONCLAVE_KERNELS_CPU_INT8_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_INT8_ROW_INL_H_
#undef CONCLAVE_KERNELS_CPU_INT8_ROW_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_INT8_ROW_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/int8.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

constexpr int64_t kUnit = 8 * kLanes;        // columns
constexpr int64_t kUnitFloats = 3 * kLanes;  // of a packed row
static_assert(kUnit % kInt8Block == 0 && kInt8Block % kLanes == 0);

inline int64_t Int8Units(int64_t cols) { return (cols + kUnit - 1) / kUnit; }

// Sums are read by whole vectors of scales, of up to 4 blocks each.
inline int64_t Int8Sums(int64_t cols) {
  constexpr int64_t kMost = kInt8GroupMax / kInt8Block * kLanes;
  return (cols / kInt8Block + kMost - 1) / kMost * kMost;
}

inline int64_t Int8Stride(int64_t cols) {
  return Int8Units(cols) * kUnitFloats + Int8Sums(cols);
}

// Scale and codes of one block; the sum of its codes.
HWY_INLINE int32_t RoundBlock(const float* from, int8_t* codes, float* scale) {
  const F32 df;
  const hn::RebindToSigned<F32> di;
  const hn::Rebind<int8_t, F32> d8;
  // Magnitudes order as integers do, and NaN is the largest.
  const auto magnitude = hn::Set(di, 0x7FFFFFFF);
  auto most = hn::Zero(di);
  for (int64_t i = 0; i < kInt8Block; i += kLanes) {
    const auto bits = hn::BitCast(di, hn::LoadU(df, from + i));
    most = hn::Max(most, hn::And(bits, magnitude));
  }
  const int32_t largest = hn::GetLane(hn::MaxOfLanes(di, most));
  float inverse = 0;
  std::memcpy(scale, &largest, sizeof(*scale));
  Int8Scale(scale, &inverse);
  const V factor = hn::Set(df, inverse);
  auto sum = hn::Zero(di);
  for (int64_t i = 0; i < kInt8Block; i += kLanes) {
    const auto code = hn::NearestInt(hn::Mul(hn::LoadU(df, from + i), factor));
    sum = hn::Add(sum, code);
    hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i);
  }
  return hn::GetLane(hn::SumOfLanes(di, sum));
}

// Block `block` of a row with `cols` columns. Even columns go to the first
// vector where `nibbles`, else every other four.
HWY_INLINE void PackInt8Block(
    bool nibbles, const float* from, int64_t cols, int64_t block, float* row) {
  alignas(16) int8_t codes[kInt8Block];
  float scale;
  const int32_t sum = RoundBlock(from, codes, &scale);
  const int64_t lane = block * kInt8Block % kUnit / 8;
  float* unit = row + block * kInt8Block / kUnit * kUnitFloats;
  float* first = unit + lane;
  float* second = first + kLanes;
  if (nibbles) {
    const hn::FixedTag<uint8_t, 16> d;
    hn::Vec<decltype(d)> even, odd;
    hn::LoadInterleaved2(d, reinterpret_cast<const uint8_t*>(codes), even, odd);
    hn::StoreU(even, d, reinterpret_cast<uint8_t*>(first));
    hn::StoreU(odd, d, reinterpret_cast<uint8_t*>(second));
  } else {
    float fours[kInt8Block / 4];
    std::memcpy(fours, codes, sizeof(codes));
    V4 even, odd;
    hn::LoadInterleaved2(F32x4(), fours, even, odd);
    hn::StoreU(even, F32x4(), first);
    hn::StoreU(odd, F32x4(), second);
  }
  hn::StoreU(hn::Set(F32x4(), scale), F32x4(), second + kLanes);
  row[Int8Units(cols) * kUnitFloats + block] = scale * static_cast<float>(sum);
}

// Zeros after the last block of a row.
HWY_INLINE void PackInt8End(int64_t cols, float* row) {
  const int64_t units = Int8Units(cols);
  const int64_t lanes = cols % kUnit / 8;
  if (lanes > 0) {
    float* unit = row + (units - 1) * kUnitFloats;
    for (int part = 0; part < 3; ++part, unit += kLanes) {
      std::fill(unit + lanes, unit + kLanes, 0.0f);
    }
  }
  float* sums = row + units * kUnitFloats;
  std::fill(sums + cols / kInt8Block, sums + Int8Sums(cols), 0.0f);
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
