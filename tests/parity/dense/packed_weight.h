// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/weight.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {

struct PackedFormat {
  std::string name;
  Packing packing = Packing::kAffine;
  int32_t bits = 8;
  int32_t group = 64;
  bool biases = true;
  DType scale_dtype = DType::kBF16;
};

inline std::vector<PackedFormat> PackedFormats() {
  std::vector<PackedFormat> out;
  for (const int32_t bits : {3, 4, 5, 6, 8}) {
    out.push_back({.name = "affine" + std::to_string(bits), .bits = bits});
  }
  out.push_back({.name = "affine4_32", .bits = 4, .group = 32});
  out.push_back({.name = "gptq",
                 .bits = 4,
                 .group = 128,
                 .biases = false,
                 .scale_dtype = DType::kF16});
  out.push_back({.name = "fp8", .packing = Packing::kFp8Block, .group = 128});
  return out;
}

// A random packed weight with its memory. Scales take both signs, as MLX
// writes them; rows and scale rows are longer than they need to be.
class PackedWeight {
 public:
  PackedWeight(uint32_t seed, const PackedFormat& f, int64_t rows, int64_t cols)
      : format_(f), rows_(rows), cols_(cols) {
    testing::Seeded random(seed);
    const bool fp8 = f.packing == Packing::kFp8Block;
    stride_ = cols * (fp8 ? 8 : f.bits) / 8 + 3;
    for (int64_t i = 0; i < rows * stride_; ++i) {
      auto code = static_cast<uint8_t>(random.Int(256));
      if (fp8 && (code & 0x7F) == 0x7F) code = 0x7E;  // no NaN
      codes_.push_back(code);
    }
    const int64_t scale_rows = fp8 ? (rows + 127) / 128 : rows;
    scale_stride_ = (cols + f.group - 1) / f.group + 1;
    for (int64_t i = 0; i < scale_rows * scale_stride_; ++i) {
      const auto scale = static_cast<float>(random.Real()) * 0.05f;
      scales_.push_back(Half(scale));
      biases_.push_back(Half(static_cast<float>(random.Real())));
    }
  }

  WeightView view() const {
    return {.data = codes_.data(),
            .dtype = DType::kU8,
            .rows = rows_,
            .cols = cols_,
            .row_stride = stride_,
            .packing = format_.packing,
            .bits = format_.bits,
            .group = format_.group,
            .scale_dtype = format_.scale_dtype,
            .scales = scales_.data(),
            .biases = format_.biases ? biases_.data() : nullptr,
            .scale_stride = scale_stride_};
  }

 private:
  // Cut off after the mantissa: bf16, or f16 of a number above 2^-14.
  uint16_t Half(float value) const {
    const auto bits = std::bit_cast<uint32_t>(value);
    if (format_.scale_dtype == DType::kBF16) {
      return static_cast<uint16_t>(bits >> 16);
    }
    const uint32_t exponent = bits >> 23 & 255;
    if (exponent < 113) return static_cast<uint16_t>(bits >> 16 & 0x8000);
    return static_cast<uint16_t>(
        (bits >> 16 & 0x8000) | ((exponent - 112) << 10) | (bits >> 13 & 1023));
  }

  PackedFormat format_;
  int64_t rows_, cols_, stride_ = 0, scale_stride_ = 0;
  std::vector<uint8_t> codes_;
  std::vector<uint16_t> scales_, biases_;
};

}  // namespace conclave::kernels
