// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "common/bf16.h"
#include "tests/testing/seeded.h"

namespace conclave::testing {

// Numbers that depend on a seed and a tensor's key.
inline Seeded SeededBy(uint32_t seed, const std::string& key) {
  for (char c : key) seed = (seed ^ static_cast<uint8_t>(c)) * 16777619u;
  return Seeded(seed);
}

inline std::vector<uint16_t> Bf16Values(
    uint32_t seed, const std::string& key, size_t n, double middle, double by) {
  Seeded random = SeededBy(seed, key);
  std::vector<uint16_t> out;
  for (size_t i = 0; i < n; ++i) {
    const auto value = static_cast<float>(middle + random.Real(by));
    out.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
  }
  return out;
}

// FP8 codes without NaN, and their scales per block of 128 x 128, by key.
inline std::string Fp8Codes(uint32_t seed, const std::string& key, size_t n) {
  Seeded random = SeededBy(seed, key);
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
  return Bf16Values(seed, key, n, 4e-4, 2e-4);
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

// Affine and GPTQ codes: any bits.
inline std::string AnyBytes(uint32_t seed, const std::string& key, size_t n) {
  Seeded random = SeededBy(seed, key);
  std::string out;
  for (size_t i = 0; i < n; ++i) {
    out.push_back(static_cast<char>(random.Int(256)));
  }
  return out;
}

// Scales of both signs, and biases that are not tied to them.
inline std::vector<uint16_t> AffineScales(uint32_t seed,
                                          const std::string& key,
                                          size_t n,
                                          int bits) {
  return Bf16Values(seed, key, n, 0, 0.2 / (1 << bits));
}
inline std::vector<uint16_t> AffineBiases(uint32_t seed,
                                          const std::string& key,
                                          size_t n) {
  return Bf16Values(seed, key, n, 0, 0.1);
}

inline std::string FloatBytes(float value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// What MLX codes [.., rows, cols] mean: fma(scale, code, bias), a bit stream
// over each row.
inline std::string AffineDecoded(uint32_t seed,
                                 const std::string& module,
                                 size_t elements,
                                 int64_t cols,
                                 int bits,
                                 int group) {
  const std::string codes =
      AnyBytes(seed, module + ".weight", elements * bits / 8);
  const auto scales =
      AffineScales(seed, module + ".scales", elements / group, bits);
  const auto biases = AffineBiases(seed, module + ".biases", elements / group);
  const size_t row_bytes = cols * bits / 8;
  std::string out;
  for (size_t i = 0; i < elements; ++i) {
    uint32_t code = 0;
    for (int b = 0; b < bits; ++b) {
      const size_t bit = i % cols * bits + b;
      const auto byte =
          static_cast<uint8_t>(codes[i / cols * row_bytes + bit / 8]);
      code |= uint32_t{byte >> bit % 8 & 1u} << b;
    }
    out += FloatBytes(std::fma(FromBf16(scales[i / group]),
                               static_cast<float>(code),
                               FromBf16(biases[i / group])));
  }
  return out;
}

// GPTQ's scales: positive float16, here by their bits; 2^-9 to 2^-8.
inline std::vector<uint16_t> GptqScales(uint32_t seed,
                                        const std::string& key,
                                        size_t n) {
  const std::string bytes = AnyBytes(seed, key, 2 * n);
  std::vector<uint16_t> out;
  for (size_t i = 0; i < n; ++i) {
    const auto low = static_cast<uint8_t>(bytes[2 * i]);
    const auto high = static_cast<uint8_t>(bytes[2 * i + 1]);
    out.push_back(
        static_cast<uint16_t>((15 - 9) << 10 | (high & 3) << 8 | low));
  }
  return out;
}

// What a GPTQ module [rows, cols] means: (code - 8) * scale.
inline std::string GptqDecoded(uint32_t seed,
                               const std::string& module,
                               int64_t rows,
                               int64_t cols,
                               int group) {
  const std::string codes =
      AnyBytes(seed, module + ".qweight", rows * cols / 2);
  const auto scales = GptqScales(seed, module + ".scales", rows * cols / group);
  std::string out;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const int64_t word = col / 8 * rows + row;
      const auto byte = static_cast<uint8_t>(codes[word * 4 + col % 8 / 2]);
      const int code = byte >> 4 * (col % 2) & 15;
      const uint16_t half = scales[col / group * rows + row];
      const double scale = std::ldexp(1024 + (half & 1023), (half >> 10) - 25);
      out += FloatBytes(static_cast<float>((code - 8) * scale));
    }
  }
  return out;
}

}  // namespace conclave::testing
