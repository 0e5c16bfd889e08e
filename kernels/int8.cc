// SPDX-License-Identifier: Apache-2.0
#include "kernels/int8.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace conclave::kernels {

bool TakesInt8(const Context& context, const WeightView& w) {
  return context.activations == Activations::kInt8 &&
         w.packing == Packing::kAffine && (w.bits == 4 || w.bits == 8) &&
         (w.group == 32 || w.group == 64 || w.group == kInt8GroupMax);
}

Context WithFloats(const Context& context) {
  Context out = context;
  out.activations = Activations::kF32;
  return out;
}

void RoundToInt8(std::span<const float> x, std::span<float> out) {
  CONCLAVE_CHECK_EQ(x.size() % kInt8Block, 0u);
  for (size_t begin = 0; begin < x.size(); begin += kInt8Block) {
    float scale = 0, inverse = 0;
    for (const float v : x.subspan(begin, kInt8Block)) {
      // A NaN stays the largest.
      if (!(std::abs(v) <= scale) && !std::isnan(scale)) scale = std::abs(v);
    }
    Int8Scale(&scale, &inverse);
    for (size_t i = begin; i < begin + kInt8Block; ++i) {
      out[i] = scale * std::nearbyint(x[i] * inverse);
    }
  }
}

}  // namespace conclave::kernels
