// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/testing/seeded.h"

namespace conclave::testing {

// FP8 codes without NaN, and their scales per block of 128 x 128, by key.
inline std::string Fp8Codes(uint32_t seed, const std::string& key, size_t n) {
  for (char c : key) seed = (seed ^ static_cast<uint8_t>(c)) * 16777619u;
  Seeded random(seed);
  std::string out;
  for (size_t i = 0; i < n; ++i) {
    const int32_t code = random.Int(256);
    out.push_back(static_cast<char>((code & 0x7F) == 0x7F ? code - 1 : code));
  }
  return out;
}

inline std::vector<uint16_t> Fp8Scales(uint32_t seed,
                                       const std::string& key,
                                       size_t n) {
  for (char c : key) seed = (seed ^ static_cast<uint8_t>(c)) * 16777619u;
  Seeded random(seed);
  std::vector<uint16_t> out;
  for (size_t i = 0; i < n; ++i) {
    const auto scale = static_cast<float>(4e-4 + random.Real(2e-4));
    out.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(scale) >> 16));
  }
  return out;
}

// What the codes of a [rows, cols] weight mean, from the definition of E4M3.
inline std::string Fp8Decoded(uint32_t seed,
                              const std::string& key,
                              const std::vector<int64_t>& shape) {
  const int64_t rows = shape[0], cols = shape[1];
  const int64_t stride = (cols + 127) / 128;
  const std::string codes = Fp8Codes(seed, key, rows * cols);
  const auto scales =
      Fp8Scales(seed, key + "_scale_inv", (rows + 127) / 128 * stride);
  std::string out;
  for (int64_t i = 0; i < rows * cols; ++i) {
    const auto code = static_cast<uint8_t>(codes[i]);
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double value = exponent == 0
                             ? std::ldexp(mantissa, -9)
                             : std::ldexp(8 + mantissa, exponent - 10);
    const uint32_t scale = scales[i / cols / 128 * stride + i % cols / 128];
    const auto decoded = static_cast<float>(
        (code & 0x80 ? -value : value) *
        static_cast<double>(std::bit_cast<float>(scale << 16)));
    out.append(reinterpret_cast<const char*>(&decoded), 4);
  }
  return out;
}

}  // namespace conclave::testing
