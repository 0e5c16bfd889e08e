// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/combine.h"

#include <algorithm>

#include "common/check.h"

namespace conclave::experts {

void Combine(std::vector<Partial> partials,
             int32_t hidden,
             std::span<float> out) {
  std::sort(
      partials.begin(), partials.end(), [](const Partial& a, const Partial& b) {
        return a.shard < b.shard;
      });
  std::fill(out.begin(), out.end(), 0.0f);
  for (const Partial& partial : partials) {
    CONCLAVE_CHECK_EQ(partial.sum.size(), partial.token.size() * hidden);
    for (size_t i = 0; i < partial.token.size(); ++i) {
      const float* from = &partial.sum[i * hidden];
      float* to = &out[static_cast<size_t>(partial.token[i]) * hidden];
      for (int32_t c = 0; c < hidden; ++c) to[c] += from[c];
    }
  }
}

}  // namespace conclave::experts
