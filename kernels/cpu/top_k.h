// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace conclave::kernels {

// Offers logit i to the sorted list ids[0, kept); i ascends from call to call.
// A later logit must be larger to get in, so the lowest index wins ties.
inline void OfferTopK(std::span<const float> logits,
                      size_t i,
                      std::span<int32_t> ids,
                      size_t& kept) {
  if (kept == ids.size() && !(logits[i] > logits[ids[kept - 1]])) return;
  size_t at = kept < ids.size() ? kept++ : kept - 1;
  for (; at > 0 && logits[ids[at - 1]] < logits[i]; --at) {
    ids[at] = ids[at - 1];
  }
  ids[at] = static_cast<int32_t>(i);
}

}  // namespace conclave::kernels
