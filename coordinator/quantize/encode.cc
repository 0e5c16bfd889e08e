// SPDX-License-Identifier: Apache-2.0
#include "coordinator/quantize/encode.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/bf16.h"
#include "common/dtype.h"

namespace conclave::quantize {
namespace {

// Nearest e4m3, ties to the even code; |value| <= 448.
uint8_t ToE4M3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::min(std::abs(value), 448.0f);
  constexpr float kSmallestNormal = 0x1p-6f;
  if (magnitude < kSmallestNormal) {  // steps of 2^-9
    return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f));
  }
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);  // [0.5, 1)
  // 16 steps of the fraction, 8 of which are below 1/2; 16 carries over.
  const int steps = static_cast<int>(std::nearbyint(fraction * 16));
  return sign | static_cast<uint8_t>((exponent + 6) * 8 + steps - 8);
}

// Not below the value, so that nothing exceeds the largest code.
uint16_t RoundUpToBf16(float value) {
  return static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + 0xFFFF) >> 16);
}

}  // namespace

void EncodeAffine(std::span<const float> row,
                  const checkpoint::AffineFormat& format,
                  std::span<uint8_t> codes,
                  std::span<uint16_t> scales,
                  std::span<uint16_t> biases) {
  const auto levels = static_cast<float>((1 << format.bits) - 1);
  std::fill(codes.begin(), codes.end(), uint8_t{0});
  for (size_t g = 0; g < scales.size(); ++g) {
    const auto group = row.subspan(g * format.group, format.group);
    const auto [low, high] = std::minmax_element(group.begin(), group.end());
    const bool low_edge = std::abs(*low) > std::abs(*high);
    float scale = std::max((*high - *low) / levels, 1e-7f);
    if (!low_edge) scale = -scale;
    const float edge = low_edge ? *low : *high;
    const float steps = std::nearbyint(edge / scale);
    if (steps != 0) scale = edge / steps;
    const float bias = steps != 0 ? edge : 0.0f;
    scales[g] = ToBf16(scale);
    biases[g] = ToBf16(bias);
    // Codes for the scale and bias that a reader has.
    const float read_scale = FromBf16(scales[g]);
    const float read_bias = FromBf16(biases[g]);
    for (int32_t i = 0; i < format.group; ++i) {
      const float code = std::clamp(
          std::nearbyint((group[i] - read_bias) / read_scale), 0.0f, levels);
      const size_t bit = (g * format.group + i) * format.bits;
      const uint32_t shifted = static_cast<uint32_t>(code) << bit % 8;
      codes[bit / 8] |= static_cast<uint8_t>(shifted);
      if (bit % 8 + format.bits > 8) {
        codes[bit / 8 + 1] |= static_cast<uint8_t>(shifted >> 8);
      }
    }
  }
}

void EncodeFp8(std::span<const float> rows,
               int64_t cols,
               std::span<uint8_t> codes,
               std::span<uint16_t> scales) {
  const auto count = static_cast<int64_t>(rows.size()) / cols;
  for (size_t block = 0; block < scales.size(); ++block) {
    const int64_t begin = static_cast<int64_t>(block) * kFp8Block;
    const int64_t end = std::min(begin + kFp8Block, cols);
    float largest = 0;
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = begin; c < end; ++c) {
        largest = std::max(largest, std::abs(rows[r * cols + c]));
      }
    }
    scales[block] = RoundUpToBf16(std::max(largest / 448, 0x1p-60f));
    const float scale = FromBf16(scales[block]);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = begin; c < end; ++c) {
        codes[r * cols + c] = ToE4M3(rows[r * cols + c] / scale);
      }
    }
  }
}

}  // namespace conclave::quantize
