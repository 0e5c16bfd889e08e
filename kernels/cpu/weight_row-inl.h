// SPDX-License-Identifier: Apache-2.0
// Readers of weight rows, one per storage: a step of two vectors at a time,
// unpacked in registers. Once per SIMD target; #pragma once would stop Highway
// from including it again.
#if defined(CONCLAVE_KERNELS_CPU_WEIGHT_ROW_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_WEIGHT_ROW_INL_H_
#undef CONCLAVE_KERNELS_CPU_WEIGHT_ROW_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_WEIGHT_ROW_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/weight.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

// Does a reader give the even elements of a step first, then the odd ones? The
// rows of x must be packed likewise.
HWY_INLINE bool InPairs(const WeightView& w) {
  return w.packing == Packing::kPlain
             ? w.dtype == DType::kBF16
             : w.packing == Packing::kAffine && w.bits == 4;
}

// float32 or bfloat16.
template <class T>
struct PlainRow {
  static constexpr bool kMayEndInStep = true;
  const T* data;
  int64_t begin = 0;  // the column that data points to

  PlainRow() = default;
  HWY_INLINE PlainRow(const WeightView& w, int64_t row)
      : data(static_cast<const T*>(w.data) + row * w.row_stride) {}
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    LoadStep(data + (i - begin), a, b);
  }
  HWY_INLINE void Prefetch(int64_t ahead, const WeightView& w) const {
    PrefetchRow(data, ahead, w);
  }
};

// Scales and biases of one row.
struct RowScales {
  const uint16_t* scales = nullptr;
  const uint16_t* biases = nullptr;
  bool f16 = false;
  float symmetric = 0;  // bias in scales, where biases is null
  int64_t group = 1;

  HWY_INLINE float Read(const uint16_t* from, int64_t at) const {
    float out;
    if (f16) {
      // Exponent and mantissa moved into a float's: 2^-112 of the value.
      const uint32_t half = from[at];
      const uint32_t moved = (half & 0x7FFF) << 13 | (half & 0x8000) << 16;
      std::memcpy(&out, &moved, sizeof(out));
      return out * 0x1p112f;
    }
    const uint32_t bits = static_cast<uint32_t>(from[at]) << 16;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
  }
  // scale * code + bias of the step at column i: a step lies in one group.
  HWY_INLINE void Apply(int64_t i, V& a, V& b) const {
    const F32 df;
    const int64_t at = i / group;
    const float scale = Read(scales, at);
    const V s = hn::Set(df, scale);
    const V z =
        hn::Set(df, biases != nullptr ? Read(biases, at) : symmetric * scale);
    a = hn::MulAdd(s, a, z);
    b = hn::MulAdd(s, b, z);
  }
};

using Bytes = hn::Rebind<uint8_t, F32>;

// kFp8Block. An e4m3 with its exponent and mantissa moved into a half's is
// 2^-8 of its value, subnormal ones included.
struct Fp8Row {
  static constexpr bool kMayEndInStep = true;
  const uint8_t* data;
  int64_t begin = 0;  // the column that data points to
  RowScales scales;

  Fp8Row() = default;
  HWY_INLINE Fp8Row(const WeightView& w, int64_t row)
      : data(static_cast<const uint8_t*>(w.data) + row * w.row_stride) {
    const int64_t block = (w.first_row + row) / w.group;
    scales.scales =
        static_cast<const uint16_t*>(w.scales) + block * w.scale_stride;
    scales.f16 = w.scale_dtype == DType::kF16;
    scales.group = kFp8Block;
  }
  HWY_INLINE V Decode(const uint8_t* from, V scale) const {
    const hn::Rebind<uint16_t, F32> d16;
    const hn::Rebind<hwy::float16_t, F32> half;
    const auto code = hn::PromoteTo(d16, hn::LoadU(Bytes(), from));
    const auto magnitude = hn::ShiftLeft<7>(hn::And(code, hn::Set(d16, 0x7F)));
    const auto sign = hn::ShiftLeft<8>(hn::And(code, hn::Set(d16, 0x80)));
    const auto bits = hn::BitCast(half, hn::Or(magnitude, sign));
    // The power of two first: the product with the scale is rounded once.
    const V value = hn::Mul(hn::PromoteTo(F32(), bits), hn::Set(F32(), 256.0f));
    return hn::Mul(value, scale);
  }
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    const V scale = hn::Set(F32(), scales.Read(scales.scales, i / kFp8Block));
    a = Decode(data + (i - begin), scale);
    b = Decode(data + (i - begin) + kLanes, scale);
  }
  HWY_INLINE void Prefetch(int64_t, const WeightView&) const {}
};

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
