// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "common/bf16.h"
#include "kernels/device_rows.h"
#include "kernels/device_step.h"

namespace conclave::kernels::host {

// Rows of `stride` elements as products read them.
class RowArray {
 public:
  RowArray(const DeviceRows& rows, int64_t stride)
      : rows_(rows), stride_(stride) {}

  float Get(int64_t row, int64_t col) const {
    const int64_t at = row * stride_ + col;
    return rows_.bf16 ? FromBf16(static_cast<const uint16_t*>(rows_.data)[at])
                      : static_cast<const float*>(rows_.data)[at];
  }
  void Set(int64_t row, int64_t col, float value) const {
    const int64_t at = row * stride_ + col;
    if (rows_.bf16) {
      static_cast<uint16_t*>(rows_.data)[at] = ToBf16(value);
    } else {
      static_cast<float*>(rows_.data)[at] = value;
    }
  }
  // A whole row, zeros beyond `values`.
  void SetRow(int64_t row, std::span<const float> values) const {
    for (int64_t col = 0; col < stride_; ++col) {
      Set(row, col, col < std::ssize(values) ? values[col] : 0.0f);
    }
  }

 private:
  const DeviceRows rows_;
  const int64_t stride_;
};

// What one row adds: the sum over planes, or that over pairs; zeros where
// there is neither.
void PartOfRow(const DeviceAddend& addend,
               int32_t rows,
               int32_t r,
               std::span<float> sum);

// u[r] = rmsnorm(x) * w, and what rounding it lost, if low is not null.
void NormRow(std::span<const float> x,
             const float* w,
             float eps,
             int32_t r,
             const DeviceRows& u,
             void* low);

}  // namespace conclave::kernels::host
