// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/dense_twins.h"
#include "kernels/int8.h"

namespace conclave::kernels::plain {
namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
float Silu(float x) { return x * Sigmoid(x); }

}  // namespace

void RouteFromLogits(std::span<float> logits,
                     int64_t rows,
                     int32_t top_k,
                     std::span<int32_t> ids,
                     std::span<float> weights) {
  const size_t experts = logits.size() / static_cast<size_t>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    std::span<float> row = logits.subspan(r * experts, experts);
    std::span<int32_t> chosen = ids.subspan(r * top_k, top_k);
    std::span<float> share = weights.subspan(r * top_k, top_k);
    // Chosen by logit: softmax keeps the order, but its rounding makes ties.
    TopK(row, chosen);
    const float max = row[chosen[0]];
    float sum = 0;
    for (float& logit : row) sum += logit = std::exp(logit - max);
    for (float& probability : row) probability /= sum;
    float kept = 0;
    for (int32_t id : chosen) kept += row[id];
    for (int32_t j = 0; j < top_k; ++j) share[j] = row[chosen[j]] / kept;
  }
}

void ExpertFfn(const Context& context,
               const ShardLayerWeights& weights,
               const ExpertEntries& entries,
               std::span<const float> x,
               int64_t rows,
               std::span<float> out) {
  Workspace::Scope scope(context.workspace);
  const int64_t width = weights.width;
  const int64_t hidden = weights.hidden;
  std::span<float> gate = context.workspace->Floats(width);
  std::span<float> up = context.workspace->Floats(width);
  std::span<float> y = context.workspace->Floats(hidden);
  std::fill_n(out.begin(), rows * hidden, 0.0f);
  for (size_t e = 0; e < entries.slice.size(); ++e) {
    const int64_t slice = entries.slice[e];
    const int64_t row = entries.row[e];
    const auto in = x.subspan(row * hidden, hidden);
    MatMul(context, in, 1, Rows(weights.gate, slice * width, width), gate);
    MatMul(context, in, 1, Rows(weights.up, slice * width, width), up);
    for (int64_t i = 0; i < width; ++i) gate[i] = Silu(gate[i]) * up[i];
    MatMul(context, gate, 1, Rows(weights.down, slice * hidden, hidden), y);
    for (int64_t i = 0; i < hidden; ++i) {
      out[row * hidden + i] += entries.weight[e] * y[i];
    }
  }
}

void SharedExpert(const Context& context,
                  const SharedExpertWeights& weights,
                  std::span<const float> u,
                  int64_t rows,
                  std::span<float> out) {
  Workspace::Scope scope(context.workspace);
  const int64_t hidden = weights.gate.cols;
  const int64_t width = weights.gate.rows;
  std::span<float> gate = context.workspace->Floats(rows * width);
  std::span<float> up = context.workspace->Floats(rows * width);
  std::span<float> share = context.workspace->Floats(rows);
  MatMul(context, u, rows, weights.gate, gate);
  MatMul(context, u, rows, weights.up, up);
  MatMul(WithFloats(context), u, rows, weights.router, share);
  for (int64_t i = 0; i < rows * width; ++i) gate[i] = Silu(gate[i]) * up[i];
  MatMul(context, gate, rows, weights.down, out);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < hidden; ++i) {
      out[r * hidden + i] *= Sigmoid(share[r]);
    }
  }
}

}  // namespace conclave::kernels::plain
