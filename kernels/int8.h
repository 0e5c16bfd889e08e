// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/weight.h"

namespace conclave::kernels {

// Activations as int8: blocks of 32 columns of a row, each
// scale * code with scale = max |x| / 127 and code = x / scale, rounded to the
// nearest integer, ties to even. A row's codes depend on that row alone.
inline constexpr int64_t kInt8Block = 32;
// Largest group of a weight that int8 products take; 32 and 64 are the others.
inline constexpr int64_t kInt8GroupMax = 128;

// Whether products with this weight round their activations: asked for, and an
// affine weight of 4 or 8 bits in groups of 32, 64 or 128.
bool TakesInt8(const Context& context, const WeightView& w);

// The same, but products keep activations in float32: for what decides, such
// as a router, where a small error is not a small difference.
Context WithFloats(const Context& context);

// From the largest magnitude of a block to its scale and what codes are
// multiplied by. Blocks too small for a normal inverse are zeros; NaN and
// infinity make the whole block NaN.
inline void Int8Scale(float* scale, float* inverse) {
  constexpr float kSmallest = 1e-30f;
  *inverse = *scale < kSmallest ? 0.0f : 127.0f / *scale;
  *scale = *scale < kSmallest ? 0.0f : *scale / 127.0f;
  if (!(*inverse > 0.0f) && *scale != 0.0f) *scale += *scale - *scale;
}

// x rounded to int8 and back, [rows of `cols`]; cols is a multiple of 32.
void RoundToInt8(std::span<const float> x, std::span<float> out);

}  // namespace conclave::kernels
