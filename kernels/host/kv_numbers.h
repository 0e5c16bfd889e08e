// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/bf16.h"
#include "kernels/device_attention.h"

// Numbers as a KV cache holds them.
namespace conclave::kernels {

inline size_t BytesOf(KvDType dtype) {
  return dtype == KvDType::kF32 ? 4 : dtype == KvDType::kBF16 ? 2 : 1;
}

inline float FromFp8(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const double value = exponent == 0 ? std::ldexp(mantissa, -9)
                                     : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(code & 0x80 ? -value : value);
}

// The nearest code; of two the even one. Too large ones become the largest.
inline uint8_t ToFp8(float value) {
  static const std::vector<float> numbers = [] {
    std::vector<float> out;
    for (int code = 0; code <= 0x7e; ++code) out.push_back(FromFp8(code));
    return out;
  }();
  const float x = std::abs(value);
  const auto above = std::upper_bound(numbers.begin(), numbers.end(), x);
  auto code = static_cast<uint8_t>(above - numbers.begin() - 1);
  if (above != numbers.end()) {
    const float down = x - numbers[code], up = *above - x;
    if (up < down || (up == down && code % 2 != 0)) ++code;
  }
  return value < 0 ? code | 0x80 : code;
}

inline void Encode(KvDType dtype, float x, uint8_t* to) {
  const uint16_t bf16 = ToBf16(x);
  if (dtype == KvDType::kF32) std::memcpy(to, &x, 4);
  if (dtype == KvDType::kBF16) std::memcpy(to, &bf16, 2);
  if (dtype == KvDType::kFp8) *to = ToFp8(x);
}

inline float Decode(KvDType dtype, const uint8_t* from) {
  float x = 0;
  uint16_t bf16 = 0;
  if (dtype == KvDType::kF32) std::memcpy(&x, from, 4);
  if (dtype == KvDType::kBF16) {
    std::memcpy(&bf16, from, 2);
    x = FromBf16(bf16);
  }
  return dtype == KvDType::kFp8 ? FromFp8(*from) : x;
}

}  // namespace conclave::kernels
