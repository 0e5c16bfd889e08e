// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/rows.h"

#include <cstring>

#include "common/bf16.h"
#include "common/check.h"

namespace conclave::experts {
void EncodeRows(std::span<const float> in,
                DType dtype,
                std::span<std::byte> out) {
  CONCLAVE_CHECK_EQ(out.size(), in.size() * SizeOf(dtype));
  if (in.empty()) return;
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), in.data(), out.size());
    return;
  }
  CONCLAVE_CHECK(dtype == DType::kBF16);
  for (size_t i = 0; i < in.size(); ++i) {
    const uint16_t value = ToBf16(in[i]);
    std::memcpy(out.data() + 2 * i, &value, 2);
  }
}

void DecodeRows(std::span<const std::byte> in,
                DType dtype,
                std::span<float> out) {
  CONCLAVE_CHECK_EQ(in.size(), out.size() * SizeOf(dtype));
  if (in.empty()) return;
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), in.data(), in.size());
    return;
  }
  CONCLAVE_CHECK(dtype == DType::kBF16);
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t value;
    std::memcpy(&value, in.data() + 2 * i, 2);
    out[i] = FromBf16(value);
  }
}

void GatherRows(std::span<const float> x,
                std::span<const int32_t> tokens,
                int32_t hidden,
                std::span<float> out) {
  CONCLAVE_CHECK_EQ(out.size(), tokens.size() * hidden);
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::memcpy(&out[i * hidden],
                &x[static_cast<size_t>(tokens[i]) * hidden],
                sizeof(float) * hidden);
  }
}

}  // namespace conclave::experts
