// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/device_attention.h"
#include "kernels/host/kv_numbers.h"
#include "kernels/host/rows.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

using host::RowArray;

// A step over one cache. Queries and probabilities stay float32: that a GPU
// rounds them is its own affair.
class Attender {
 public:
  Attender(const AttentionShape& shape,
           const DeviceAttentionWeights& weights,
           const DeviceKv& cache,
           const DeviceStep& step)
      : s_(shape),
        weights_(weights),
        cache_(cache),
        step_(step),
        each_(BytesOf(cache.dtype)) {}

  // Columns of a row of the projections.
  int64_t width() const {
    return 2 * int64_t{s_.head_dim} * (s_.heads + s_.kv_heads);
  }

  void Append(int32_t row, const float* projected) const {
    const float* k = projected + 2 * int64_t{s_.heads} * s_.head_dim;
    const float* v = k + int64_t{s_.kv_heads} * s_.head_dim;
    const int32_t position = step_.position[row];
    for (int32_t h = 0; h < s_.kv_heads; ++h) {
      std::vector<float> key(k + h * s_.head_dim, k + (h + 1) * s_.head_dim);
      NormAndTurn(weights_.k_norm, position, key);
      for (int32_t i = 0; i < s_.head_dim; ++i) {
        Encode(cache_.dtype, key[i], At(row, false, h, position, i));
        Encode(cache_.dtype,
               v[h * s_.head_dim + i],
               At(row, true, h, position, i));
      }
    }
  }

  // y: [heads * head_dim]
  void Attend(int32_t row, const float* projected, float* y) const {
    const int32_t position = step_.position[row];
    for (int32_t h = 0; h < s_.heads; ++h) {
      const float* from = projected + 2 * int64_t{h} * s_.head_dim;
      std::vector<float> q(from, from + s_.head_dim);
      NormAndTurn(weights_.q_norm, position, q);
      float* out = y + int64_t{h} * s_.head_dim;
      AttendHead(row, h / (s_.heads / s_.kv_heads), position + 1, q, out);
      for (int32_t i = 0; i < s_.head_dim; ++i) {
        out[i] /= 1.0f + std::exp(-from[s_.head_dim + i]);
      }
    }
  }

 private:
  // Element i of a key, or of a value, of the row's sequence.
  uint8_t* At(int32_t row,
              bool value,
              int32_t head,
              int32_t position,
              int32_t i) const {
    const int64_t sequence = step_.sequence_of[row];
    const int64_t block =
        step_
            .kv_blocks[sequence * step_.kv_stride + position / s_.block_tokens];
    const int64_t in_block = position % s_.block_tokens;
    const int64_t part = int64_t{s_.kv_heads} * s_.block_tokens * s_.head_dim;
    const int64_t of_head =
        value ? (int64_t{head} * s_.head_dim + i) * s_.block_tokens + in_block
              : (int64_t{head} * s_.block_tokens + in_block) * s_.head_dim + i;
    const int64_t at = 2 * block * part + (value ? part : 0) + of_head;
    return static_cast<uint8_t*>(cache_.data) + static_cast<size_t>(at) * each_;
  }

  void NormAndTurn(const float* w,
                   int32_t position,
                   std::vector<float>& x) const {
    float sum = 0;
    for (const float value : x) sum += value * value;
    const float factor =
        1.0f / std::sqrt(sum / static_cast<float>(s_.head_dim) + s_.eps);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= factor * w[i];
    const int32_t half = s_.rotary_dim / 2;
    for (int32_t i = 0; i < half; ++i) {
      const double angle =
          position * std::pow(s_.rope_theta, -2.0 * i / s_.rotary_dim);
      const auto c = static_cast<float>(std::cos(angle));
      const auto d = static_cast<float>(std::sin(angle));
      const float a = x[i], b = x[i + half];
      x[i] = a * c - b * d;
      x[i + half] = b * c + a * d;
    }
  }

  void AttendHead(int32_t row,
                  int32_t head,
                  int32_t count,
                  const std::vector<float>& q,
                  float* y) const {
    const float scale = 1.0f / std::sqrt(static_cast<float>(s_.head_dim));
    std::vector<float> scores(static_cast<size_t>(count));
    for (int32_t p = 0; p < count; ++p) {
      float sum = 0;
      for (int32_t i = 0; i < s_.head_dim; ++i) {
        sum += q[i] * Decode(cache_.dtype, At(row, false, head, p, i));
      }
      scores[p] = sum * scale;
    }
    const float largest = *std::max_element(scores.begin(), scores.end());
    float total = 0;
    std::fill_n(y, s_.head_dim, 0.0f);
    for (int32_t p = 0; p < count; ++p) {
      const float e = std::exp(scores[p] - largest);
      total += e;
      for (int32_t i = 0; i < s_.head_dim; ++i) {
        y[i] += e * Decode(cache_.dtype, At(row, true, head, p, i));
      }
    }
    for (int32_t i = 0; i < s_.head_dim; ++i) y[i] /= total;
  }

  const AttentionShape s_;
  const DeviceAttentionWeights weights_;
  const DeviceKv cache_;
  const DeviceStep step_;
  const size_t each_;
};

}  // namespace

absl::Status DeviceAttention(DeviceQueue* queue,
                             const AttentionShape& shape,
                             const DeviceAttentionWeights& weights,
                             const DeviceKv& cache,
                             const DeviceStep& step,
                             const float* projected,
                             float*,
                             const DeviceRows& y) {
  host::StreamOf(queue)->Do([=] {
    const Attender attender(shape, weights, cache, step);
    const RowArray out(y, int64_t{shape.heads} * shape.head_dim);
    for (int32_t r = 0; r < step.rows; ++r) {
      attender.Append(r, projected + r * attender.width());
    }
    std::vector<float> row(static_cast<size_t>(shape.heads) * shape.head_dim);
    for (int32_t r = 0; r < step.rows; ++r) {
      attender.Attend(r, projected + r * attender.width(), row.data());
      out.SetRow(r, row);
    }
  });
  return absl::OkStatus();
}

size_t AttentionScratchFloats(const DeviceQueue&,
                              const AttentionShape&,
                              int32_t,
                              int32_t) {
  return 0;
}

}  // namespace conclave::kernels
