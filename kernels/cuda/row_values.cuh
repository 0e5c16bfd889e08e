// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/fragments.cuh"

// The rows of x of a product of few rows, 8 N of them, as lanes read them.
namespace conclave::kernels::cuda {

template <int N>
struct RowPointers {
  // What this lane reads of unit 0; null: no such row.
  const __nv_bfloat16* at[N];
};

// Rows of x at the columns of a unit: 8 numbers per half.
template <int N>
struct RowValues {
  uint4 of[N][2] = {};
};

// Rows that are not there stay what they are, zero.
template <int N>
__device__ __forceinline__ void FetchRows(const RowPointers<N>& x,
                                          int unit,
                                          RowValues<N>& out) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (x.at[n] == nullptr) continue;
    const auto* from =
        reinterpret_cast<const uint4*>(x.at[n] + unit * kUnitCols);
    out.of[n][0] = from[0];
    out.of[n][1] = from[4];
  }
}

}  // namespace conclave::kernels::cuda
