// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/product_args.cuh"

// Products in float32: weights as their format defines them, no tensor cores.
namespace conclave::kernels::cuda {

inline constexpr int kExactRows = 8;  // of x, of a block
inline constexpr int kExactWarps = 4;

// Number i (0 or 1) of fragment f of a step, in float32.
template <DeviceFormat F>
__device__ __forceinline__ float Element(const uint4 (&raw)[kPieces<F>],
                                         int step,
                                         int f,
                                         int i,
                                         const RowScales& s) {
  uint32_t a[4];
  Fragments<F>(raw, step, 0, a);
  const auto number = [i](uint32_t pair) {
    return __uint_as_float(i == 0 ? pair << 16 : pair & 0xffff0000u);
  };
  const float value = number(a[f]);
  if constexpr (F == DeviceFormat::kBf16) {
    return value;
  } else if constexpr (F == DeviceFormat::kFp8) {
    return value * kFp8Up * s.scale[0];
  } else {
    float code = value - 128.0f;
    if constexpr (F == DeviceFormat::kAffine8) {
      uint32_t high[4];
      Fragments<F>(raw, step, 1, high);
      code += 16.0f * (number(high[f]) - 128.0f);
    }
    return fmaf(s.scale[f % 2], code, s.bias[f % 2]);
  }
}

template <DeviceFormat F, int R>
__device__ __forceinline__ void ExactUnit(const ProductArgs& p,
                                          const RowGroup& group,
                                          const float* const (&x)[kExactRows],
                                          int tile,
                                          int unit,
                                          float (&total)[R][kExactRows][2]) {
  const int lane = threadIdx.x % kLanes;
  const int g = lane / 4;
  const int t = lane % 4;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = min(tile + r, p.m.tiles - 1);
    const uint8_t* from =
        group.data +
        (static_cast<int64_t>(row) * p.m.units + unit) * kUnitBytes<F> +
        lane * 16;
    uint4 raw[kPieces<F>];
#pragma unroll
    for (int i = 0; i < kPieces<F>; ++i) {
      raw[i] = __ldg(reinterpret_cast<const uint4*>(from + i * kLanes * 16));
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int col =
          unit * kUnitCols + 32 * (step / 2) + 8 * t + 4 * (step % 2);
      const RowScales s =
          Scales<F>(LoadScales<F>(p.m, group.scales, row, col / 32, g));
#pragma unroll
      for (int f = 0; f < 4; ++f) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float w = Element<F>(raw, step, f, i, s);
#pragma unroll
          for (int n = 0; n < kExactRows; ++n) {
            if (x[n] == nullptr) continue;
            const float value = x[n][col + 2 * (f / 2) + i];
            total[r][n][f % 2] = fmaf(w, value, total[r][n][f % 2]);
          }
        }
      }
    }
  }
}

// A warp takes R tiles of weight rows, a block kExactWarps times as many.
template <DeviceFormat F, Use U>
__global__ void ExactProduct(ProductArgs p) {
  constexpr int R = U == Use::kGateUp ? 2 : 1;
  WaitForKernelBefore();
  LetNextKernelBegin();
  RowGroup group;
  if (!FindRows<U>(p, blockIdx.x, kExactRows, &group)) return;
  const int tile = (blockIdx.y * kExactWarps + threadIdx.x / kLanes) * R;
  if (tile >= p.m.tiles) return;
  const float* x[kExactRows];
#pragma unroll
  for (int n = 0; n < kExactRows; ++n) {
    x[n] = n < group.count
               ? static_cast<const float*>(p.x) +
                     static_cast<int64_t>(RowOf<U>(p, group, n)) * p.x_stride
               : nullptr;
  }
  float total[R][kExactRows][2] = {};
  for (int unit = 0; unit < p.m.units; ++unit) {
    ExactUnit<F, R>(p, group, x, tile, unit, total);
  }
  const Places<R> places =
      U == Use::kGateUp ? Places<R>{} : PlacesAt<R>(p, tile);
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int n = 0; n < kExactRows; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        sum[r] = total[r][n][half];
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
      }
      if (lane % 4 == 0 && n < group.count) {
        Store<U, R>(p, group.first + n, tile, lane / 4 + 8 * half, sum, places);
      }
    }
  }
}

}  // namespace conclave::kernels::cuda
