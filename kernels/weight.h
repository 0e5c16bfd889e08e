// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace conclave::kernels {

// A linear's weight [rows = out, cols = in], row-major, not owned. y = W x.
// dtype is kF32 or kBF16. Quantised formats will add their scales here.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements from one row to the next, >= cols
};

// Rows [begin, begin + count).
inline WeightView Rows(const WeightView& w, int64_t begin, int64_t count) {
  WeightView out = w;
  out.data = static_cast<const char*>(w.data) +
             begin * w.row_stride * static_cast<int64_t>(SizeOf(w.dtype));
  out.rows = count;
  return out;
}

}  // namespace conclave::kernels
