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

#include <algorithm>
#include <cmath>
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

// float32 or bfloat16. Only these rows may end within a step.
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

HWY_INLINE RowScales AffineScales(const WeightView& w, int64_t row) {
  RowScales out;
  out.scales = static_cast<const uint16_t*>(w.scales) + row * w.scale_stride;
  if (w.biases != nullptr) {
    out.biases = static_cast<const uint16_t*>(w.biases) + row * w.scale_stride;
  }
  out.f16 = w.scale_dtype == DType::kF16;
  out.symmetric = -static_cast<float>(1 << (w.bits - 1));
  out.group = w.group;
  return out;
}

using Bytes = hn::Rebind<uint8_t, F32>;
using Ints = hn::RebindToSigned<F32>;

HWY_INLINE V FromCodes(hn::Vec<Bytes> codes) {
  return hn::ConvertTo(F32(), hn::PromoteTo(Ints(), codes));
}

// kAffine of 4 bits: a byte is an even and an odd column.
struct Affine4Row {
  static constexpr bool kMayEndInStep = false;
  const uint8_t* codes;
  RowScales scales;

  Affine4Row() = default;
  HWY_INLINE Affine4Row(const WeightView& w, int64_t row)
      : codes(static_cast<const uint8_t*>(w.data) + row * w.row_stride),
        scales(AffineScales(w, row)) {}
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    const Bytes d8;
    const auto pairs = hn::LoadU(d8, codes + i / 2);
    a = FromCodes(hn::And(pairs, hn::Set(d8, 15)));
    b = FromCodes(hn::ShiftRight<4>(pairs));
    scales.Apply(i, a, b);
  }
  HWY_INLINE void Prefetch(int64_t, const WeightView&) const {}
};

// kAffine of any bits: 8 directly, others through a bit stream.
struct AffineRow {
  static constexpr bool kMayEndInStep = false;
  const uint8_t* codes;
  int32_t bits;
  RowScales scales;

  AffineRow() = default;
  HWY_INLINE AffineRow(const WeightView& w, int64_t row)
      : codes(static_cast<const uint8_t*>(w.data) + row * w.row_stride),
        bits(w.bits),
        scales(AffineScales(w, row)) {}
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    const Bytes d8;
    const uint8_t* from = codes + i;
    uint8_t unpacked[kStep];
    if (bits != 8) {
      // Eight codes are `bits` bytes.
      const uint8_t* part = codes + i / 8 * bits;
      for (int64_t k = 0; k < kStep; k += 8, part += bits) {
        uint64_t word = 0;
        std::memcpy(&word, part, static_cast<size_t>(bits));
        for (int64_t j = 0; j < 8; ++j, word >>= bits) {
          unpacked[k + j] = static_cast<uint8_t>(word & ((1u << bits) - 1));
        }
      }
      from = unpacked;
    }
    a = FromCodes(hn::LoadU(d8, from));
    b = FromCodes(hn::LoadU(d8, from + kLanes));
    scales.Apply(i, a, b);
  }
  HWY_INLINE void Prefetch(int64_t, const WeightView&) const {}
};

// kFp8Block. An e4m3 with its exponent and mantissa moved into a float's is
// 2^-120 of its value, subnormal ones included.
struct Fp8Row {
  static constexpr bool kMayEndInStep = true;
  const uint8_t* data;
  int64_t begin = 0;  // the column that data points to
  RowScales scales;

  Fp8Row() = default;
  HWY_INLINE Fp8Row(const WeightView& w, int64_t row)
      : data(static_cast<const uint8_t*>(w.data) + row * w.row_stride) {
    const int64_t block = (w.first_row + row) / kFp8Block;
    scales.scales =
        static_cast<const uint16_t*>(w.scales) + block * w.scale_stride;
    scales.f16 = w.scale_dtype == DType::kF16;
    scales.group = kFp8Block;
  }
  HWY_INLINE V Decode(const uint8_t* from, float scale) const {
    const F32 df;
    const hn::RebindToUnsigned<F32> du;
    const auto code = hn::PromoteTo(du, hn::LoadU(Bytes(), from));
    const auto magnitude = hn::ShiftLeft<20>(hn::And(code, hn::Set(du, 0x7F)));
    const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 0x80)));
    const V value = hn::Mul(hn::BitCast(df, hn::Or(magnitude, sign)),
                            hn::Set(df, 0x1p120f));
    return hn::Mul(value, hn::Set(df, scale));
  }
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    const float scale = scales.Read(scales.scales, i / kFp8Block);
    a = Decode(data + (i - begin), scale);
    b = Decode(data + (i - begin) + kLanes, scale);
  }
  HWY_INLINE void Prefetch(int64_t, const WeightView&) const {}
};

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
