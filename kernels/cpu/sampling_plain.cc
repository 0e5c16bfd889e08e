// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/cpu/top_k.h"
#include "kernels/dense_twins.h"

namespace conclave::kernels::plain {

// NaNs are passed over.
int32_t ArgMax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  }
  return std::isnan(logits[best]) ? 0 : static_cast<int32_t>(best);
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

void TopK(std::span<const float> logits, std::span<int32_t> ids) {
  size_t kept = 0;
  for (size_t i = 0; i < logits.size(); ++i) OfferTopK(logits, i, ids, kept);
}

}  // namespace conclave::kernels::plain
