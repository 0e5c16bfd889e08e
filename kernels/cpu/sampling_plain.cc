// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/cpu/dense.h"

namespace conclave::kernels::plain {

int32_t ArgMax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

float LogSumExp(std::span<const float> logits) {
  const float max = logits[ArgMax(logits)];
  if (std::isinf(max)) return max;
  // Sums of 256 first: a vocabulary in one float32 sum would lose digits.
  constexpr size_t kBlock = 256;
  float total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    float sum = 0;
    const size_t end = std::min(logits.size(), begin + kBlock);
    for (size_t i = begin; i < end; ++i) sum += std::exp(logits[i] - max);
    total += sum;
  }
  return max + std::log(total);
}

// Keeps ids sorted while it looks at one logit after the other. A later logit
// must be larger to get in, so the lowest index wins ties.
void TopK(std::span<const float> logits, std::span<int32_t> ids) {
  size_t kept = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (kept == ids.size() && !(logits[i] > logits[ids[kept - 1]])) continue;
    size_t at = kept < ids.size() ? kept++ : kept - 1;
    for (; at > 0 && logits[ids[at - 1]] < logits[i]; --at) {
      ids[at] = ids[at - 1];
    }
    ids[at] = static_cast<int32_t>(i);
  }
}

}  // namespace conclave::kernels::plain
