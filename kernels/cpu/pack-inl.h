// SPDX-License-Identifier: Apache-2.0
// Vectors of the dense blocks and the packed form of their float32 rows, once
// per SIMD target; #pragma once would stop Highway from including it again.
#if defined(CONCLAVE_KERNELS_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_PACK_INL_H_
#undef CONCLAVE_KERNELS_CPU_PACK_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_PACK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/weight.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using V = hn::Vec<F32>;
using F32x4 = hn::FixedTag<float, 4>;
using V4 = hn::Vec<F32x4>;

constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(F32()));
// One step of a dot product takes two vectors.
constexpr int64_t kStep = 2 * kLanes;
constexpr int64_t kStepMax = 32;
static_assert(kStepMax % kStep == 0);

// Rows of one register tile, by the number of vector registers.
constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64 ? 4 : 2;

inline int64_t PaddedCols(int64_t cols) {
  return (cols + kStep - 1) / kStep * kStep;
}

// Packed rows: cols padded with zeros to whole steps. In pairs a
// step holds its even elements, then its odd ones: the weights' halves of a
// 32-bit lane become floats with one shift or one mask, in that order.
HWY_INLINE void PackStep(bool pairs, const float* from, float* to) {
  const F32 df;
  V first = hn::LoadU(df, from);
  V second = hn::LoadU(df, from + kLanes);
  if (pairs) hn::LoadInterleaved2(df, from, first, second);
  hn::StoreU(first, df, to);
  hn::StoreU(second, df, to + kLanes);
}

HWY_INLINE void PackRow(bool pairs,
                        const float* from,
                        int64_t cols,
                        float* to) {
  int64_t i = 0;
  for (; i + kStep <= cols; i += kStep) PackStep(pairs, from + i, to + i);
  if (i == cols) return;
  float tail[kStep] = {};
  std::memcpy(tail, from + i, (cols - i) * sizeof(float));
  PackStep(pairs, tail, to + i);
}

HWY_INLINE void LoadStep(const uint16_t* w, V& first, V& second) {
  const F32 df;
  const hn::RebindToUnsigned<F32> du;
  const hn::Repartition<uint16_t, F32> du16;
  const auto bits = hn::BitCast(du, hn::LoadU(du16, w));
  first = hn::BitCast(df, hn::ShiftLeft<16>(bits));
  second = hn::BitCast(df, hn::And(bits, hn::Set(du, 0xFFFF0000u)));
}

HWY_INLINE void LoadStep(const float* w, V& first, V& second) {
  const F32 df;
  first = hn::LoadU(df, w);
  second = hn::LoadU(df, w + kLanes);
}

// Asks for the weight row that is `ahead` rows after `row`, while this one is
// multiplied: short rows end before the hardware's own prefetch runs ahead.
// Prefetching past the last row is harmless.
template <class T>
HWY_INLINE void PrefetchRow(const T* row, int64_t ahead, const WeightView& w) {
  constexpr int64_t kElementsMax = 2048 / sizeof(T), kLine = 64 / sizeof(T);
  const auto at = reinterpret_cast<uintptr_t>(row) +
                  static_cast<uintptr_t>(ahead * w.row_stride) * sizeof(T);
  const int64_t count = std::min(w.cols, kElementsMax);
  for (int64_t i = 0; i < count; i += kLine) {
    hwy::Prefetch(reinterpret_cast<const T*>(at) + i);
  }
}

// How rows of x are packed for the weight that they meet.
enum class RowForm : uint8_t {
  kFloats,   // as they are
  kPairs,    // even elements of a step, then odd ones
  kNibbles,  // int8, for codes of 4 bits: int8_row-inl.h
  kBytes,    // int8, for codes of 8 bits
};

// Packed rows, in order or picked by index.
struct PackedRows {
  const float* data = nullptr;
  int64_t stride = 0;
  const int32_t* index = nullptr;
  RowForm form = RowForm::kFloats;
  const float* at(int64_t r) const {
    return data + (index == nullptr ? r : index[r]) * stride;
  }
};

HWY_INLINE void StoreFour(V4 v, int64_t count, float* to) {
  const F32x4 d4;
  if (count == 4) {
    hn::StoreU(v, d4, to);
    return;
  }
  float four[4];
  hn::StoreU(v, d4, four);
  std::memcpy(to, four, count * sizeof(float));
}

HWY_INLINE V4 LoadFour(const float* from, int64_t count) {
  const F32x4 d4;
  if (count == 4) return hn::LoadU(d4, from);
  float four[4] = {};
  std::memcpy(four, from, count * sizeof(float));
  return hn::LoadU(d4, four);
}

template <class D, class VD>
HWY_INLINE V4 SumBlocks(D, VD v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return SumBlocks(half,
                     hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// The four sums of lanes of a, b, c and d; the same tree for each.
HWY_INLINE V4 SumFour(V a, V b, V c, V d) {
  const F32 df;
  const hn::Repartition<uint64_t, F32> du64;
  const auto ab = hn::BitCast(
      du64,
      hn::Add(hn::InterleaveLower(df, a, b), hn::InterleaveUpper(df, a, b)));
  const auto cd = hn::BitCast(
      du64,
      hn::Add(hn::InterleaveLower(df, c, d), hn::InterleaveUpper(df, c, d)));
  const V sum = hn::Add(hn::BitCast(df, hn::InterleaveLower(du64, ab, cd)),
                        hn::BitCast(df, hn::InterleaveUpper(du64, ab, cd)));
  return SumBlocks(df, sum);
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
