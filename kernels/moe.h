// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/stacked_experts.h"
#include "kernels/context.h"
#include "kernels/weight.h"

namespace conclave::kernels {

// Router (docs/qwen3.5-moe 3.5): softmax over all experts in float32, the
// top_k largest in descending order (ties: lowest index first), renormalised to
// sum 1. gate [experts, hidden], u [rows, hidden]; ids, weights [rows, top_k].
absl::Status Route(const Context& context,
                   const WeightView& gate,
                   std::span<const float> u,
                   int64_t rows,
                   int32_t top_k,
                   std::span<int32_t> ids,
                   std::span<float> weights);

// The slices of one shard and layer, stacked. For slice s: rows
// [width * s, +width) of gate and up, [hidden * s, +hidden) of down.
struct ShardLayerWeights {
  int32_t slices = 0;
  int32_t width = 0;
  int32_t hidden = 0;
  WeightView gate, up;  // [slices * width, hidden]
  WeightView down;      // [slices * hidden, width]
};

// Views of the memory that holds them.
ShardLayerWeights ViewOf(const StackedExperts& experts);

// One (slice, row) pair each; sorted by (slice, row), no pair twice.
struct ExpertEntries {
  std::span<const int32_t> slice;  // local index in the shard's layer
  std::span<const int32_t> row;    // of x and of out
  std::span<const float> weight;   // routing weight
};

// out[r] = sum over the entries of row r, in ascending slice order, of
// weight * down_s(silu(gate_s x[r]) * (up_s x[r])). Rows without an entry get
// zeros. x, out: [rows, hidden]. This one entry point serves LocalExperts and
// the worker; bits of a row depend on its own entries only.
absl::Status ExpertFfn(const Context& context,
                       const ShardLayerWeights& weights,
                       const ExpertEntries& entries,
                       std::span<const float> x,
                       int64_t rows,
                       std::span<float> out);

struct SharedExpertWeights {
  WeightView gate, up;  // [intermediate, hidden]
  WeightView down;      // [hidden, intermediate]
  WeightView router;    // [1, hidden], sigmoid gate of the whole expert
};

// out[r] = sigmoid(router u) * down(silu(gate u) * (up u)), [rows, hidden].
absl::Status SharedExpert(const Context& context,
                          const SharedExpertWeights& weights,
                          std::span<const float> u,
                          int64_t rows,
                          std::span<float> out);

}  // namespace conclave::kernels
