// SPDX-License-Identifier: Apache-2.0
// Columns of a weight are the weight's columns, in every format.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/bf16.h"
#include "tests/parity/dense/packed_weight.h"

namespace conclave::kernels {
namespace {

constexpr int64_t kRows = 40, kCols = 384;

void ExpectColumns(const WeightView& w, int64_t begin, int64_t end) {
  const WeightView part = Columns(w, begin, end);
  CheckWeight(part);
  ASSERT_EQ(part.cols, end - begin);
  std::vector<float> whole(w.cols), got(part.cols);
  for (int64_t row = 0; row < w.rows; ++row) {
    DecodeRow(w, row, whole);
    DecodeRow(part, row, got);
    for (int64_t c = begin; c < end; ++c) {
      ASSERT_EQ(got[c - begin], whole[c]) << "row " << row << ", column " << c;
    }
  }
}

TEST(Columns, OfPackedWeights) {
  for (const PackedFormat& format : PackedFormats()) {
    SCOPED_TRACE(format.name);
    const PackedWeight weight(3, format, kRows, kCols);
    ExpectColumns(weight.view(), 0, 128);
    ExpectColumns(weight.view(), 128, 384);
    ExpectColumns(Columns(weight.view(), 128, 384), 128, 256);
    ExpectColumns(Rows(weight.view(), 16, 8), 256, 384);
  }
}

TEST(Columns, OfPlainWeights) {
  std::vector<float> floats = testing::Seeded(4).Floats(kRows * kCols);
  std::vector<uint16_t> halves;
  for (const float x : floats) halves.push_back(ToBf16(x));
  ExpectColumns({floats.data(), DType::kF32, kRows, kCols, kCols}, 7, 100);
  ExpectColumns({halves.data(), DType::kBF16, kRows, kCols, kCols}, 16, 17);
}

}  // namespace
}  // namespace conclave::kernels
