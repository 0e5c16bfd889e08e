// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/context.h"

namespace conclave::kernels {

// Index of the largest logit; the lowest wins ties. logits is not empty.
int32_t ArgMax(const Context& context, std::span<const float> logits);

// log(sum_i exp(logits[i])), float32, safe against overflow.
float LogSumExp(const Context& context, std::span<const float> logits);

// ids = the ids.size() largest logits, descending, ties lowest index first.
// ids.size() <= logits.size().
absl::Status TopK(const Context& context,
                  std::span<const float> logits,
                  std::span<int32_t> ids);

}  // namespace conclave::kernels
