// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/activations.h"

#include <algorithm>
#include <cstddef>

namespace conclave::model {

void Activations::Resize(const checkpoint::ModelConfig& config,
                         int64_t rows,
                         int64_t wanted) {
  const auto stream = static_cast<size_t>(rows * config.hidden_size);
  const auto choices = static_cast<size_t>(rows * config.num_experts_per_tok);
  const auto head = static_cast<size_t>(wanted * config.hidden_size);
  const auto vocab = static_cast<size_t>(wanted * config.vocab_size);
  const size_t total = 4 * stream + choices + head + vocab;
  if (floats_.size() < total) floats_.resize(total);
  if (ints_.size() < choices) ints_.resize(choices);
  std::span<float> rest(floats_);
  const auto take = [&rest](size_t size) {
    const std::span<float> out = rest.first(size);
    rest = rest.subspan(size);
    return out;
  };
  all.x = take(stream);
  all.u = take(stream);
  all.y = take(stream);
  all.shared = take(stream);
  all.expert_weight = take(choices);
  head_in = take(head);
  logits = take(vocab);
  all.expert = std::span(ints_).first(choices);
  hidden_ = static_cast<size_t>(config.hidden_size);
  top_k_ = static_cast<size_t>(config.num_experts_per_tok);
}

RowArrays Activations::Rows(int32_t begin, int32_t rows) const {
  const auto of = [&](auto array, size_t width) {
    return array.subspan(static_cast<size_t>(begin) * width,
                         static_cast<size_t>(rows) * width);
  };
  return {.x = of(all.x, hidden_),
          .u = of(all.u, hidden_),
          .y = of(all.y, hidden_),
          .shared = of(all.shared, hidden_),
          .expert = of(all.expert, top_k_),
          .expert_weight = of(all.expert_weight, top_k_)};
}

}  // namespace conclave::model
