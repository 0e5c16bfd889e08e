// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/dense_twins.h"

namespace conclave::kernels::plain {
namespace {

float ToFloat(float value) { return value; }

float ToFloat(uint16_t bf16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16);
}

template <typename T>
void MatMulOf(std::span<const float> x,
              int64_t rows,
              const WeightView& w,
              std::span<float> out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.data() + r * w.cols;
    for (int64_t o = 0; o < w.rows; ++o) {
      const T* weight = static_cast<const T*>(w.data) + o * w.row_stride;
      float sum = 0;
      for (int64_t i = 0; i < w.cols; ++i) sum += ToFloat(weight[i]) * row[i];
      out[r * w.rows + o] = sum;
    }
  }
}

template <typename T>
void EmbedOf(const WeightView& table,
             std::span<const int32_t> ids,
             std::span<float> out) {
  for (size_t r = 0; r < ids.size(); ++r) {
    const T* from = static_cast<const T*>(table.data) +
                    static_cast<int64_t>(ids[r]) * table.row_stride;
    float* to = out.data() + static_cast<int64_t>(r) * table.cols;
    for (int64_t i = 0; i < table.cols; ++i) to[i] = ToFloat(from[i]);
  }
}

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

void MatMul(std::span<const float> x,
            int64_t rows,
            const WeightView& w,
            std::span<float> out) {
  if (w.dtype == DType::kBF16) {
    MatMulOf<uint16_t>(x, rows, w, out);
  } else {
    MatMulOf<float>(x, rows, w, out);
  }
}

void Embed(const WeightView& table,
           std::span<const int32_t> ids,
           std::span<float> out) {
  if (table.dtype == DType::kBF16) {
    EmbedOf<uint16_t>(table, ids, out);
  } else {
    EmbedOf<float>(table, ids, out);
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
