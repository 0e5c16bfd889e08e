// SPDX-License-Identifier: Apache-2.0
#include "coordinator/quantize/decode.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/parity/dense/packed_weight.h"

namespace conclave::quantize {
namespace {

TEST(DecodeRowFast, IsBitForBitTheSlowReader) {
  for (const kernels::PackedFormat& format : kernels::PackedFormats()) {
    const bool fp8 = format.packing == kernels::Packing::kFp8Block;
    const int64_t cols = fp8 ? 300 : 3 * format.group;
    const int64_t rows = 131;
    const kernels::PackedWeight weight(7, format, rows, cols);
    kernels::WeightView view = weight.view();
    view.first_row = fp8 ? 5 : 0;
    std::vector<float> slow(static_cast<size_t>(cols)), fast(slow.size());
    for (int64_t row = 0; row < rows - 5; ++row) {
      kernels::DecodeRow(view, row, slow);
      DecodeRowFast(view, row, fast);
      ASSERT_EQ(std::memcmp(slow.data(), fast.data(), slow.size() * 4), 0)
          << format.name << " row " << row;
    }
  }
}

}  // namespace
}  // namespace conclave::quantize
