// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/checkpoint/model_config.h"

namespace conclave::model {

// Arrays of consecutive rows of a step, one row per new token.
struct RowArrays {
  std::span<float> x;              // [rows, hidden] the residual stream
  std::span<float> u;              // [rows, hidden] after a norm
  std::span<float> y;              // [rows, hidden] what a block adds to x
  std::span<float> shared;         // [rows, hidden] of the shared expert
  std::span<int32_t> expert;       // [rows, top_k]
  std::span<float> expert_weight;  // [rows, top_k]
};

// The arrays of one step. They grow to the largest step and are then reused.
class Activations {
 public:
  // Sets the spans for a step of `rows` rows, `wanted` of them with logits.
  void Resize(const checkpoint::ModelConfig& config,
              int64_t rows,
              int64_t wanted);

  // Of `rows` rows from `begin` on.
  RowArrays Rows(int32_t begin, int32_t rows) const;

  RowArrays all;             // of the whole step
  std::span<float> head_in;  // [wanted, hidden] final hidden, gathered
  std::span<float> logits;   // [wanted, vocab]

 private:
  size_t hidden_ = 0, top_k_ = 0;
  std::vector<float> floats_;
  std::vector<int32_t> ints_;
};

}  // namespace conclave::model
