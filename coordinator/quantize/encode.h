// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "common/checkpoint/quantisation.h"

namespace conclave::quantize {

// One row in affine codes, a scale and a bias per group, as MLX makes them: the
// edge of a group that is farther from zero is met exactly, so that a scale
// may be negative. codes: [cols * bits / 8]; scales, biases: bf16,
// [cols / group]. cols is a multiple of group.
void EncodeAffine(std::span<const float> row,
                  const checkpoint::AffineFormat& format,
                  std::span<uint8_t> codes,
                  std::span<uint16_t> scales,
                  std::span<uint16_t> biases);

// Up to 128 rows in e4m3 with a scale per 128 columns: the largest magnitude
// of a block becomes 448 or a little less. rows: [count, cols]; codes likewise;
// scales: bf16, [ceil(cols / 128)].
void EncodeFp8(std::span<const float> rows,
               int64_t cols,
               std::span<uint8_t> codes,
               std::span<uint16_t> scales);

}  // namespace conclave::quantize
