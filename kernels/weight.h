// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "common/dtype.h"
#include "common/weight_layout.h"

namespace conclave::kernels {

// How a weight's numbers are stored; docs/qwen3.5-moe 2.4 to 2.6.
enum class Packing : uint8_t {
  kPlain,     // as dtype says
  kAffine,    // groups of a row: scale * q + bias, q of `bits` bits
  kFp8Block,  // blocks: scale * e4m3
};

// A linear's weight [rows = out, cols = in], row-major, not owned. y = W x.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // kF32 or kBF16; kU8 where packed
  int64_t rows = 0;
  int64_t cols = 0;
  // Elements from one row to the next, >= cols; bytes where packed.
  int64_t row_stride = 0;

  // Packed only. kAffine: bits 3, 4, 5, 6 or 8, element j of a row at bit
  // j * bits, least significant first; scales and biases are
  // [rows, cols / group]; cols is a multiple of group, group of 32.
  // kFp8Block: scales are [blocks of `group` rows, blocks of 128 cols].
  Packing packing = Packing::kPlain;
  int32_t bits = 0;
  int32_t group = 0;
  DType scale_dtype = DType::kBF16;  // or kF16, of scales and biases
  const void* scales = nullptr;
  const void* biases = nullptr;  // kAffine; null: -2^(bits - 1) * scale
  int64_t scale_stride = 0;      // elements from one row of scales to the next
  int64_t first_row = 0;         // kFp8Block: of the tensor, where data begins
};

// The view of a weight in memory.
WeightView ViewOf(const StoredWeight& weight);

// Rows [begin, begin + count).
WeightView Rows(const WeightView& w, int64_t begin, int64_t count);

// Columns [begin, end): whole groups or blocks of scales, but for the last.
WeightView Columns(const WeightView& w, int64_t begin, int64_t end);

// Bytes of `cols` numbers of a row, without what stands between rows.
int64_t RowBytes(const WeightView& w);

// Row `row` in float32, as the format defines it: what the plain twins use.
// out is [cols].
void DecodeRow(const WeightView& w, int64_t row, std::span<float> out);

// Aborts unless the fields fit each other.
void CheckWeight(const WeightView& w);

}  // namespace conclave::kernels
