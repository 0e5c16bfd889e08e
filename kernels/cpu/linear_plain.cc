// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/dense_twins.h"
#include "kernels/int8.h"

namespace conclave::kernels::plain {
namespace {

// Sums of 64 first: one long float32 sum of positive numbers would lose digits.
float SumOfSquares(const float* x, int64_t n) {
  constexpr int64_t kBlock = 64;
  float total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    float sum = 0;
    const int64_t end = std::min(n, begin + kBlock);
    for (int64_t i = begin; i < end; ++i) sum += x[i] * x[i];
    total += sum;
  }
  return total;
}

}  // namespace

void MatMul(const Context& context,
            std::span<const float> x,
            int64_t rows,
            const WeightView& w,
            std::span<float> out) {
  std::vector<float> rounded;
  if (TakesInt8(context, w)) {
    rounded.resize(x.size());
    RoundToInt8(x, rounded);
    x = rounded;
  }
  std::vector<float> weight(static_cast<size_t>(w.cols));
  for (int64_t o = 0; o < w.rows; ++o) {
    DecodeRow(w, o, weight);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = x.data() + r * w.cols;
      float sum = 0;
      for (int64_t i = 0; i < w.cols; ++i) sum += weight[i] * row[i];
      out[r * w.rows + o] = sum;
    }
  }
}

void Embed(const WeightView& table,
           std::span<const int32_t> ids,
           std::span<float> out) {
  const auto cols = static_cast<size_t>(table.cols);
  for (size_t r = 0; r < ids.size(); ++r) {
    DecodeRow(table, ids[r], out.subspan(r * cols, cols));
  }
}

void RmsNorm(std::span<const float> x,
             int64_t rows,
             std::span<const float> w,
             float eps,
             std::span<float> out) {
  const int64_t cols = static_cast<int64_t>(w.size());
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = x.data() + r * cols;
    float* to = out.data() + r * cols;
    const float mean = SumOfSquares(from, cols) / static_cast<float>(cols);
    const float scale = 1.0f / std::sqrt(mean + eps);
    for (int64_t i = 0; i < cols; ++i) to[i] = from[i] * scale * w[i];
  }
}

void AddTo(std::span<const float> y, std::span<float> x) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace conclave::kernels::plain
