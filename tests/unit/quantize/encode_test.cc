// SPDX-License-Identifier: Apache-2.0
#include "coordinator/quantize/encode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/bf16.h"
#include "kernels/weight.h"
#include "tests/testing/seeded.h"

namespace conclave::quantize {
namespace {

using testing::Seeded;

// Read back by the kernels' definition: no number is off by more than a step
// (MLX's rule may cut off the edge that is nearer to zero) and what rounding
// scale and bias to bf16 moves.
TEST(EncodeAffine, IsWithinAStep) {
  for (const int32_t bits : {3, 4, 5, 6, 8}) {
    const checkpoint::AffineFormat format{bits, 64};
    auto row = Seeded(static_cast<uint32_t>(bits)).Floats(192);
    // A group of one sign, and one without any spread.
    for (size_t i = 64; i < 128; ++i) row[i] = 2 + 0.1f * row[i];
    for (size_t i = 128; i < 192; ++i) row[i] = 0.25f;
    std::vector<uint8_t> codes(192 * bits / 8);
    std::vector<uint16_t> scales(3), biases(3);
    EncodeAffine(row, format, codes, scales, biases);
    const auto view = kernels::ViewOf({.layout = {.dtype = DType::kU32,
                                                  .rows = 1,
                                                  .cols = 192,
                                                  .bits = bits,
                                                  .group = 64,
                                                  .biases = true},
                                       .data = codes.data(),
                                       .scales = scales.data(),
                                       .biases = biases.data()});
    std::vector<float> back(192);
    kernels::DecodeRow(view, 0, back);
    for (size_t i = 0; i < row.size(); ++i) {
      const float step = std::abs(FromBf16(scales[i / 64]));
      const float edge = std::abs(FromBf16(biases[i / 64]));
      const float rounded = (edge + step * (1 << bits)) / 256;
      EXPECT_NEAR(back[i], row[i], step + rounded) << bits << " " << i;
    }
    // A constant group is met to bf16.
    EXPECT_NEAR(back[130], 0.25f, 1e-3f);
  }
}

TEST(EncodeFp8, MeetsEveryCode) {
  // The largest code makes the scale 1, so that each code is its own value.
  std::vector<float> row;
  for (int code = 0; code < 127; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    row.push_back(static_cast<float>(
        exponent == 0 ? std::ldexp(mantissa, -9)
                      : std::ldexp(8 + mantissa, exponent - 10)));
  }
  row.push_back(-row[77]);
  std::vector<uint8_t> codes(row.size());
  std::vector<uint16_t> scales(1);
  EncodeFp8(row, static_cast<int64_t>(row.size()), codes, scales);
  EXPECT_EQ(FromBf16(scales[0]), 1.0f);
  for (int code = 0; code < 127; ++code) EXPECT_EQ(codes[code], code);
  EXPECT_EQ(codes[127], 77 | 0x80);
}

TEST(EncodeFp8, RoundsToTheNearestAndNeverBeyondTheLargest) {
  auto rows = Seeded(9).Floats(128 * 300);
  std::vector<uint8_t> codes(rows.size());
  std::vector<uint16_t> scales(3);
  EncodeFp8(rows, 300, codes, scales);
  const auto view = kernels::ViewOf({.layout = {.dtype = DType::kF8E4M3,
                                                .rows = 128,
                                                .cols = 300,
                                                .group = 128},
                                     .data = codes.data(),
                                     .scales = scales.data()});
  std::vector<float> back(300);
  for (int64_t r = 0; r < 128; ++r) {
    kernels::DecodeRow(view, r, back);
    for (int64_t c = 0; c < 300; ++c) {
      const float value = rows[r * 300 + c];
      const float scale = FromBf16(scales[c / 128]);
      ASSERT_NEAR(back[c], value, std::abs(value) / 16 + scale * 0x1p-10f);
      ASSERT_NE(codes[r * 300 + c] & 0x7F, 0x7F);
    }
  }
}

}  // namespace
}  // namespace conclave::quantize
