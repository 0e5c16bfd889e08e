// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/dtype.h"

namespace conclave::experts {

// Rows of floats as they travel: float32, or bf16 rounded to nearest even.
// `out` has in.size() elements of `dtype`.
void EncodeRows(std::span<const float> in,
                DType dtype,
                std::span<std::byte> out);
void DecodeRows(std::span<const std::byte> in,
                DType dtype,
                std::span<float> out);

// out[i] = x[tokens[i]], rows of `hidden` floats.
void GatherRows(std::span<const float> x,
                std::span<const int32_t> tokens,
                int32_t hidden,
                std::span<float> out);

}  // namespace conclave::experts
