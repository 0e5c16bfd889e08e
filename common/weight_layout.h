// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace conclave {

// How a weight matrix [rows, cols] lies in memory: three arrays, row-major.
//   kF32, kBF16   data alone.
//   kF8E4M3       data: codes; scales: bf16, [rows / group, cols / 128], each
//                 count rounded up.
//   kU32          affine codes of `bits` bits, least significant first; scales
//                 and biases: scale_dtype, [rows, cols / group].
// docs/qwen3.5-moe 2.4 to 2.6.
struct WeightLayout {
  DType dtype = DType::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  int32_t bits = 0;                  // kU32: 3, 4, 5, 6 or 8
  int32_t group = 0;                 // kU32: columns of a scale; FP8: rows
  DType scale_dtype = DType::kBF16;  // kU32: or kF16, of scales and biases
  bool biases = false;               // kU32; else -2^(bits - 1) * scale

  uint64_t row_bytes() const {
    const auto width = static_cast<uint64_t>(cols);
    return dtype == DType::kU32 ? width * bits / 8 : width * SizeOf(dtype);
  }
  uint64_t data_bytes() const { return rows * row_bytes(); }
  // Scales from one row of them to the next.
  int64_t scale_stride() const {
    if (dtype == DType::kF8E4M3) return Fp8Blocks(cols);
    return dtype == DType::kU32 ? cols / group : 0;
  }
  uint64_t scale_bytes() const {
    const int64_t lines =
        dtype == DType::kF8E4M3 ? (rows + group - 1) / group : rows;
    return sizeof(uint16_t) * lines * scale_stride();
  }
  uint64_t bias_bytes() const { return biases ? scale_bytes() : 0; }
  uint64_t bytes() const { return data_bytes() + scale_bytes() + bias_bytes(); }

  friend bool operator==(const WeightLayout&, const WeightLayout&) = default;
};

// Such a matrix, or several of them stacked by rows; not owned.
struct StoredWeight {
  WeightLayout layout;  // rows: of all
  const void* data = nullptr;
  const void* scales = nullptr;
  const void* biases = nullptr;
};

}  // namespace conclave
