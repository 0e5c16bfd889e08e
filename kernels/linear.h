// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/context.h"
#include "kernels/weight.h"

namespace conclave::kernels {

// out[r][o] = sum_i w[o][i] * x[r][i]. x is [rows, w.cols], out [rows, w.rows],
// both dense. Products and sums in float32; the bits of a row depend neither on
// other rows nor on the number of threads.
absl::Status MatMul(const Context& context,
                    std::span<const float> x,
                    int64_t rows,
                    const WeightView& w,
                    std::span<float> out);

// out[r] = float(table[ids[r]]). ids lie in [0, table.rows): the caller checks.
// out is [rows, table.cols].
absl::Status Embed(const Context& context,
                   const WeightView& table,
                   std::span<const int32_t> ids,
                   std::span<float> out);

// y = x / sqrt(mean(x^2) + eps) * w per row, w float32 [cols] with any "+1"
// already added (docs/qwen3.5-moe 3.1). x, out: [rows, cols]; may alias.
absl::Status RmsNorm(const Context& context,
                     std::span<const float> x,
                     int64_t rows,
                     std::span<const float> w,
                     float eps,
                     std::span<float> out);

// x += y, element by element.
absl::Status AddTo(const Context& context,
                   std::span<const float> y,
                   std::span<float> x);

}  // namespace conclave::kernels
