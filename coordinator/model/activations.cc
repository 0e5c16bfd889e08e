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
  x = take(stream);
  u = take(stream);
  y = take(stream);
  shared = take(stream);
  expert_weight = take(choices);
  head_in = take(head);
  logits = take(vocab);
  expert = std::span(ints_).first(choices);
}

}  // namespace conclave::model
