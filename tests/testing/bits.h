// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace conclave::testing {

// For comparisons in which NaN equals NaN, and 0 is not -0.
inline std::vector<uint32_t> Bits(std::span<const float> values) {
  std::vector<uint32_t> bits;
  bits.reserve(values.size());
  for (const float x : values) bits.push_back(std::bit_cast<uint32_t>(x));
  return bits;
}

}  // namespace conclave::testing
