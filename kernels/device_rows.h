// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_product.h"
#include "kernels/device_queue.h"
#include "kernels/device_step.h"
#include "kernels/weight.h"

namespace conclave::kernels {

// x[r] = table[token[r]], float32, as the format defines it. The table lies in
// device memory as the checkpoint stores it (WeightView of device pointers).
absl::Status DeviceEmbed(DeviceQueue* queue,
                         const WeightView& table,
                         const int32_t* token,
                         int32_t rows,
                         float* x);

// What is added to the residual stream before a norm; either may be null.
struct DeviceAddend {
  const float* dense = nullptr;  // [planes, rows, cols], in that order
  int32_t planes = 1;
  // sum over the pairs of a row, in their order, of weight * pairs[place].
  const float* pairs = nullptr;  // [pairs, cols]
  const DeviceEntries* entries = nullptr;
};

// x[r] += addend; u[r] = rmsnorm(x[r]) * w. low: null, or what rounding u to
// bf16 lost, as bf16. x: [rows, cols] float32; cols: a multiple of 64, at most
// 8192. rows_of: null, or which rows of x are normed into u[0], u[1], ...: then
// nothing is added and `rows` counts these.
absl::Status DeviceAddNorm(DeviceQueue* queue,
                           int32_t rows,
                           int32_t cols,
                           const DeviceAddend& addend,
                           const float* w,
                           float eps,
                           const int32_t* rows_of,
                           float* x,
                           const DeviceRows& u,
                           void* low);

}  // namespace conclave::kernels
