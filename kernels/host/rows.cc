// SPDX-License-Identifier: Apache-2.0
#include "kernels/host/rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/device_rows.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

using host::RowArray;
using host::StreamOf;

// What is added to row `r`: the planes, then the pairs, in sums of their own.
void AddTo(const DeviceAddend& addend,
           int32_t rows,
           int32_t r,
           std::span<float> x) {
  const int64_t cols = std::ssize(x);
  std::vector<float> sum(x.size());
  if (addend.dense != nullptr) {
    for (int64_t plane = 0; plane < addend.planes; ++plane) {
      const float* from = addend.dense + (plane * rows + r) * cols;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += from[i];
    }
    for (size_t i = 0; i < sum.size(); ++i) x[i] += sum[i];
  }
  if (addend.pairs == nullptr) return;
  sum.assign(sum.size(), 0.0f);
  const DeviceEntries& e = *addend.entries;
  for (int64_t j = int64_t{r} * e.per_row; j < (r + 1) * e.per_row; ++j) {
    const float* from = addend.pairs + int64_t{e.place[j]} * cols;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += e.weight[j] * from[i];
  }
  for (size_t i = 0; i < sum.size(); ++i) x[i] += sum[i];
}

void Norm(std::span<const float> x,
          const float* w,
          float eps,
          std::vector<float>* out) {
  float sum = 0;
  for (const float value : x) sum += value * value;
  const float factor =
      1.0f / std::sqrt(sum / static_cast<float>(x.size()) + eps);
  out->resize(x.size());
  for (size_t i = 0; i < x.size(); ++i) (*out)[i] = x[i] * factor * w[i];
}

}  // namespace

absl::Status DeviceEmbed(DeviceQueue* queue,
                         const WeightView& table,
                         const int32_t* token,
                         int32_t rows,
                         float* x) {
  StreamOf(queue)->Do([=] {
    const auto cols = static_cast<size_t>(table.cols);
    for (int32_t r = 0; r < rows; ++r) {
      const std::span<float> out(x + r * table.cols, cols);
      std::fill(out.begin(), out.end(), 0.0f);
      if (token[r] >= 0 && token[r] < table.rows) {
        DecodeRow(table, token[r], out);
      }
    }
  });
  return absl::OkStatus();
}

absl::Status DeviceAddNorm(DeviceQueue* queue,
                           int32_t rows,
                           int32_t cols,
                           const DeviceAddend& addend,
                           const float* w,
                           float eps,
                           const int32_t* rows_of,
                           float* x,
                           const DeviceRows& u,
                           void* low) {
  DeviceEntries entries;
  if (addend.entries != nullptr) entries = *addend.entries;
  StreamOf(queue)->Do([=] {
    // The caller's entries need not live as long as a recorded step.
    DeviceAddend kept = addend;
    kept.entries = &entries;
    const RowArray out(u, cols);
    const RowArray lost({.data = low}, cols);
    std::vector<float> normed;
    for (int32_t r = 0; r < rows; ++r) {
      const int64_t row = rows_of == nullptr ? r : rows_of[r];
      const std::span<float> line(x + row * cols, static_cast<size_t>(cols));
      if (rows_of == nullptr) AddTo(kept, rows, r, line);
      Norm(line, w, eps, &normed);
      out.SetRow(r, normed);
      if (low == nullptr) continue;
      for (float& value : normed) value -= FromBf16(ToBf16(value));
      lost.SetRow(r, normed);
    }
  });
  return absl::OkStatus();
}

}  // namespace conclave::kernels
