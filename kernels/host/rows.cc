// SPDX-License-Identifier: Apache-2.0
#include "kernels/host/rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/device_rows.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace host {

void PartOfRow(const DeviceAddend& addend,
               int32_t rows,
               int32_t r,
               std::span<float> sum) {
  const int64_t cols = std::ssize(sum);
  std::fill(sum.begin(), sum.end(), 0.0f);
  if (addend.dense != nullptr) {
    for (int64_t plane = 0; plane < addend.planes; ++plane) {
      const float* from = addend.dense + (plane * rows + r) * cols;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += from[i];
    }
    return;
  }
  if (addend.pairs == nullptr) return;
  const DeviceEntries& e = *addend.entries;
  for (int64_t j = int64_t{r} * e.per_row; j < (r + 1) * e.per_row; ++j) {
    const float* from = addend.pairs + int64_t{e.place[j]} * cols;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += e.weight[j] * from[i];
  }
}

void NormRow(std::span<const float> x,
             const float* w,
             float eps,
             int32_t r,
             const DeviceRows& u,
             void* low) {
  float sum = 0;
  for (const float value : x) sum += value * value;
  const float factor =
      1.0f / std::sqrt(sum / static_cast<float>(x.size()) + eps);
  std::vector<float> normed(x.size());
  for (size_t i = 0; i < x.size(); ++i) normed[i] = x[i] * factor * w[i];
  RowArray(u, std::ssize(x)).SetRow(r, normed);
  if (low == nullptr) return;
  for (float& value : normed) value -= FromBf16(ToBf16(value));
  RowArray({.data = low}, std::ssize(x)).SetRow(r, normed);
}

}  // namespace host

using host::StreamOf;

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
    // The caller's entries need not live as long as a recorded step. Planes
    // and pairs are sums of their own.
    const DeviceAddend dense{.dense = addend.dense, .planes = addend.planes};
    const DeviceAddend pairs{.pairs = addend.pairs, .entries = &entries};
    std::vector<float> sum(static_cast<size_t>(cols));
    for (int32_t r = 0; r < rows; ++r) {
      const int64_t row = rows_of == nullptr ? r : rows_of[r];
      const std::span<float> line(x + row * cols, static_cast<size_t>(cols));
      for (const DeviceAddend* part : {&dense, &pairs}) {
        if (part->dense == nullptr && part->pairs == nullptr) continue;
        host::PartOfRow(*part, rows, r, sum);
        for (size_t i = 0; i < sum.size(); ++i) line[i] += sum[i];
      }
      host::NormRow(line, w, eps, r, u, low);
    }
  });
  return absl::OkStatus();
}

}  // namespace conclave::kernels
