// SPDX-License-Identifier: Apache-2.0
// Dot products of float32 rows with weight rows of any storage, once per SIMD
// target; #pragma once would stop Highway from including it again.
#if defined(CONCLAVE_KERNELS_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_DOT_INL_H_
#undef CONCLAVE_KERNELS_CPU_DOT_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_DOT_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "kernels/cpu/affine_row-inl.h"
#include "kernels/cpu/dot_tile-inl.h"
#include "kernels/cpu/int8_dot-inl.h"
#include "kernels/cpu/int8_row-inl.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/weight_row-inl.h"
#include "kernels/weight.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {

HWY_INLINE RowForm FormOf(const Context& context, const WeightView& w) {
  if (TakesInt8(context, w)) {
    return w.bits == 4 ? RowForm::kNibbles : RowForm::kBytes;
  }
  return InPairs(w) ? RowForm::kPairs : RowForm::kFloats;
}

HWY_INLINE bool IsInt8(RowForm form) { return form >= RowForm::kNibbles; }

// Floats of a packed row with `cols` columns.
HWY_INLINE int64_t PackedStride(RowForm form, int64_t cols) {
  return IsInt8(form) ? Int8Stride(cols) : PaddedCols(cols);
}

// Columns [begin, end) of a row, from `from` on, into a packed row of `cols`.
// begin is a multiple of kPackedColumns; end too, or cols. Reads whole steps.
constexpr int64_t kPackedColumns = 32;
static_assert(kPackedColumns % kStep == 0 && kPackedColumns == kInt8Block);

HWY_INLINE void PackColumns(RowForm form,
                            const float* from,
                            int64_t cols,
                            int64_t begin,
                            int64_t end,
                            float* row) {
  if (IsInt8(form)) {
    const bool nibbles = form == RowForm::kNibbles;
    for (int64_t i = begin; i < end; i += kInt8Block) {
      PackInt8Block(nibbles, from + i - begin, cols, i / kInt8Block, row);
    }
    if (end == cols) PackInt8End(cols, row);
    return;
  }
  for (int64_t i = begin; i < end; i += kStep) {
    PackStep(form == RowForm::kPairs, from + i - begin, row + i);
  }
}

HWY_INLINE void PackWholeRow(RowForm form,
                             const float* from,
                             int64_t cols,
                             float* to) {
  if (IsInt8(form)) {
    PackColumns(form, from, cols, 0, cols, to);
  } else {
    PackRow(form == RowForm::kPairs, from, cols, to);
  }
}

template <int kOuts, class Row>
struct OutRows {
  Row row[kOuts];  // past the last output the last again
  HWY_INLINE OutRows(const WeightView& w, int64_t begin, int64_t end) {
    for (int64_t o = 0; o < kOuts; ++o) {
      row[o] = Row(w, std::min(begin + o, end - 1));
      row[o].Prefetch(kOuts, w);
    }
  }
};

// Not inlined, nor are tiles: with all storages in one function compilers take
// minutes under sanitizers.
template <class Row, class Sink>
HWY_NOINLINE void DotBlockOf(const PackedRows& x,
                             int64_t rows,
                             const WeightView& w,
                             int64_t begin,
                             int64_t end,
                             const Sink& sink) {
  const auto tile = [&](int64_t r, int64_t o) HWY_ATTR {
    return [&sink, r, o, end](int row, int out, V4 sums) HWY_ATTR {
      const int64_t count = std::min<int64_t>(4, end - o - out);
      if (count > 0) sink(r + row, o + out, sums, count);
    };
  };
  if (rows == 1) {
    const float* const one[4] = {x.at(0)};
    for (int64_t o = begin; o < end; o += 8) {
      const OutRows<8, Row> outs(w, o, end);
      DotTile<1, 8>(one, outs.row, w.cols, tile(0, o));
    }
    return;
  }
  for (int64_t o = begin; o < end; o += 4) {
    const OutRows<4, Row> outs(w, o, end);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, rows - r);
      const auto at = [&](int64_t i) {
        return x.at(std::min(r + i, rows - 1));
      };
      const float* const four[] = {at(0), at(1), at(2), at(3)};
      if (count == 1) {
        DotTile<1, 4>(four, outs.row, w.cols, tile(r, o));
      } else if (count == 2) {
        DotTile<2, 4>(four, outs.row, w.cols, tile(r, o));
      } else if (count == 3) {
        DotTile<3, 4>(four, outs.row, w.cols, tile(r, o));
      } else {
        DotTile<4, 4>(four, outs.row, w.cols, tile(r, o));
      }
    }
  }
}

// sink(row, out, four sums, how many count) for every row and every out in
// [begin, end) of w. x is packed for w: FormOf.
template <class Sink>
HWY_INLINE void DotBlock(const PackedRows& x,
                         int64_t rows,
                         const WeightView& w,
                         int64_t begin,
                         int64_t end,
                         const Sink& sink) {
  if (x.form == RowForm::kNibbles) {
    if (HasVnni()) {
      return Int8DotBlock<4, true>(x, rows, w, begin, end, sink);
    }
    Int8DotBlock<4, false>(x, rows, w, begin, end, sink);
  } else if (x.form == RowForm::kBytes) {
    if (HasVnni()) {
      return Int8DotBlock<8, true>(x, rows, w, begin, end, sink);
    }
    Int8DotBlock<8, false>(x, rows, w, begin, end, sink);
  } else if (w.packing == Packing::kFp8Block) {
    DotBlockOf<Fp8Row>(x, rows, w, begin, end, sink);
  } else if (w.packing == Packing::kAffine) {
    switch (w.bits) {
      case 3:
        return DotBlockOf<BitStreamRow<3>>(x, rows, w, begin, end, sink);
      case 4:
        return DotBlockOf<Affine4Row>(x, rows, w, begin, end, sink);
      case 5:
        return DotBlockOf<BitStreamRow<5>>(x, rows, w, begin, end, sink);
      case 6:
        return DotBlockOf<BitStreamRow<6>>(x, rows, w, begin, end, sink);
      default:
        return DotBlockOf<Affine8Row>(x, rows, w, begin, end, sink);
    }
  } else if (w.dtype == DType::kBF16) {
    DotBlockOf<PlainRow<uint16_t>>(x, rows, w, begin, end, sink);
  } else {
    DotBlockOf<PlainRow<float>>(x, rows, w, begin, end, sink);
  }
}

}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
