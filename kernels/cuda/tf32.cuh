// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Products of float32 numbers rounded to 11 bits, with float32 sums.
namespace conclave::kernels::cuda {

// To the nearest; what a product reads must be rounded, or bits are cut off.
__device__ __forceinline__ float Tf32(float x) {
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(x));
  return __uint_as_float(out);
}

// d += a b, a [16, 8] row-major, b [8, 8]. With g = lane / 4 and t = lane % 4:
// a holds (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4), b holds (t, g) and
// (t + 4, g), d holds (g, 2 t), (g, 2 t + 1) and the same of row g + 8.
__device__ __forceinline__ void MultiplyAddTf32(float (&d)[4],
                                                const float (&a)[4],
                                                float b0,
                                                float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])),
        "r"(__float_as_uint(a[1])),
        "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)),
        "r"(__float_as_uint(b1)));
}

}  // namespace conclave::kernels::cuda
