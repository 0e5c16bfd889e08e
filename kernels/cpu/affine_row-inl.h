// SPDX-License-Identifier: Apache-2.0
// Readers of affine weight rows, unpacked in registers. Once per SIMD target;
// #pragma once would stop Highway from including it again.
#if defined(CONCLAVE_KERNELS_CPU_AFFINE_ROW_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_AFFINE_ROW_INL_H_
#undef CONCLAVE_KERNELS_CPU_AFFINE_ROW_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_AFFINE_ROW_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/weight_row-inl.h"
#include "kernels/weight.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

using Ints = hn::RebindToSigned<F32>;

HWY_INLINE V FromCodes(hn::Vec<Bytes> codes) {
  return hn::ConvertTo(F32(), hn::PromoteTo(Ints(), codes));
}

// What all of them have. Groups are whole, so no row ends within a step.
struct AffineRow {
  static constexpr bool kMayEndInStep = false;
  const uint8_t* codes;
  RowScales scales;

  AffineRow() = default;
  HWY_INLINE AffineRow(const WeightView& w, int64_t row)
      : codes(static_cast<const uint8_t*>(w.data) + row * w.row_stride) {
    const int64_t at = row * w.scale_stride;
    scales.scales = static_cast<const uint16_t*>(w.scales) + at;
    if (w.biases != nullptr) {
      scales.biases = static_cast<const uint16_t*>(w.biases) + at;
    }
    scales.f16 = w.scale_dtype == DType::kF16;
    scales.symmetric = -static_cast<float>(1 << (w.bits - 1));
    scales.group = w.group;
  }
  HWY_INLINE void Prefetch(int64_t, const WeightView&) const {}
};

// 4 bits: a byte is an even and an odd column.
struct Affine4Row : AffineRow {
  Affine4Row() = default;
  HWY_INLINE Affine4Row(const WeightView& w, int64_t row) : AffineRow(w, row) {}
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    const Bytes d8;
    const auto pairs = hn::LoadU(d8, codes + i / 2);
    a = FromCodes(hn::And(pairs, hn::Set(d8, 15)));
    b = FromCodes(hn::ShiftRight<4>(pairs));
    scales.Apply(i, a, b);
  }
};

struct Affine8Row : AffineRow {
  Affine8Row() = default;
  HWY_INLINE Affine8Row(const WeightView& w, int64_t row) : AffineRow(w, row) {}
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    a = FromCodes(hn::LoadU(Bytes(), codes + i));
    b = FromCodes(hn::LoadU(Bytes(), codes + i + kLanes));
    scales.Apply(i, a, b);
  }
};

// Where the codes of one vector of a bit stream lie: two bytes hold any code
// of up to six bits, shifted by up to seven.
template <int kBits>
struct BitPlaces {
  static_assert(kBits <= 6 && kLanes * kBits + 7 <= 128);
  HWY_ALIGN uint8_t bytes[2][4 * kLanes];
  HWY_ALIGN uint32_t shifts[2][kLanes];

  constexpr BitPlaces() : bytes(), shifts() {
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t bit = half * kLanes * kBits % 8 + lane * kBits;
        bytes[half][4 * lane] = static_cast<uint8_t>(bit / 8);
        bytes[half][4 * lane + 1] = static_cast<uint8_t>(bit / 8 + 1);
        bytes[half][4 * lane + 2] = bytes[half][4 * lane + 3] = 0x80;  // zero
        shifts[half][lane] = static_cast<uint32_t>(bit % 8);
      }
    }
  }
};
template <int kBits>
inline constexpr BitPlaces<kBits> kBitPlaces;

// 3, 5 or 6 bits.
template <int kBits>
struct BitStreamRow : AffineRow {
  const uint8_t* end;  // of all rows

  BitStreamRow() = default;
  HWY_INLINE BitStreamRow(const WeightView& w, int64_t row)
      : AffineRow(w, row),
        end(static_cast<const uint8_t*>(w.data) + (w.rows - 1) * w.row_stride +
            w.cols * kBits / 8) {}
  // Codes of half a step that begins at column i.
  HWY_INLINE V Half(int64_t i, int half) const {
    const hn::Repartition<uint8_t, F32> d8;
    const hn::RebindToUnsigned<F32> d32;
    const uint8_t* from = codes + (i * kBits + half * kLanes * kBits) / 8;
    uint8_t last[16] = {};
    if (from + sizeof(last) > end) {
      std::memcpy(last, from, static_cast<size_t>(end - from));
      from = last;
    }
    const auto spread = hn::TableLookupBytesOr0(
        hn::LoadDup128(d8, from), hn::Load(d8, kBitPlaces<kBits>.bytes[half]));
    const auto shifted = hn::Shr(hn::BitCast(d32, spread),
                                 hn::Load(d32, kBitPlaces<kBits>.shifts[half]));
    const auto code = hn::And(shifted, hn::Set(d32, (1u << kBits) - 1));
    return hn::ConvertTo(F32(), hn::BitCast(Ints(), code));
  }
  HWY_INLINE void Load(int64_t i, V& a, V& b) const {
    a = Half(i, 0);
    b = Half(i, 1);
    scales.Apply(i, a, b);
  }
};

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
