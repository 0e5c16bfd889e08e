// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "kernels/weight.h"

namespace conclave::quantize {

// Row `row` in float32, bit for bit what kernels::DecodeRow gives, several
// times faster: a table of the values that one scale can give, codes taken
// eight at a time. out is [cols].
void DecodeRowFast(const kernels::WeightView& w,
                   int64_t row,
                   std::span<float> out);

}  // namespace conclave::quantize
