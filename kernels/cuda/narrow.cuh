// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/narrow_shape.h"
#include "kernels/cuda/narrow_warp.cuh"

// Products with few rows: every byte of the weights passes once from memory
// into a ring in shared memory and from there into tensor cores as the left
// operand; rows are the right one, up to 8 N of them. The warps of a block
// share R tiles of 16 weight rows and split their columns.
namespace conclave::kernels::cuda {

inline constexpr int kWarpsMax = 4;  // of a block
// Blocks of a multiprocessor, which their registers must leave room for.
template <DeviceFormat F, int R, int N>
inline constexpr int kBlocksOf =
    N == 1 ? (R == 2 && F != DeviceFormat::kBf16 ? kSmallBlocks : 4)
           : (N == 2 ? kBlocksOf16Rows : kBlocksOf32Rows);

// Adds up what the warps have, in their order, and writes it. place: where lane
// r's tile goes.
template <Use U, int R, int N>
__device__ __forceinline__ void Finish(const ProductArgs& p,
                                       const RowGroup& group,
                                       int tile,
                                       const float (&total)[R][N][4],
                                       int2 place,
                                       float* shared) {
  const int warps = blockDim.x / kLanes;
  const int warp = threadIdx.x / kLanes;
  constexpr int kValues = N * 4 * kLanes;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        shared[(warp * R + r) * kValues + (n * 4 + v) * kLanes +
               threadIdx.x % kLanes] = total[r][n][v];
      }
    }
  }
  Places<R> places;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    places.of[r] = {__shfl_sync(0xffffffffu, place.x, r),
                    __shfl_sync(0xffffffffu, place.y, r)};
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kValues; i += blockDim.x) {
    const int lane = i % kLanes;
    const int v = i / kLanes % 4;
    const int column = i / (4 * kLanes) * 8 + 2 * (lane % 4) + v % 2;
    const int row = lane / 4 + 8 * (v / 2);
    if (column >= group.count) continue;
    float sum[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      sum[r] = 0;
      for (int w = 0; w < warps; ++w) {
        sum[r] += shared[(w * R + r) * kValues + i];
      }
    }
    Store<U, R>(p, group.first + column, tile, row, sum, places);
  }
}

// A block takes R tiles by 8 N rows, plane blockIdx.z of gridDim.z of the
// columns.
template <DeviceFormat F, Use U, int R, int N, bool WithLow>
__global__ void __launch_bounds__(kWarpsMax* kLanes, kBlocksOf<F, R, N>)
    NarrowProduct(ProductArgs p) {
  extern __shared__ __align__(16) uint8_t shared[];
  using Work = Narrow<F, R, N, WithLow>;
  constexpr bool kDense = U == Use::kDense;
  const int warps = blockDim.x / kLanes;
  const int warp = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int tile = (kDense ? blockIdx.y : blockIdx.x) * R;
  if (kDense) LetNextKernelBegin();
  // Pairs are known to kDown: kGateUp waited for them before it let this one
  // begin.
  if (U == Use::kGateUp) WaitForKernelBefore();
  RowGroup group;
  if (!FindRows<U>(p, kDense ? blockIdx.x : blockIdx.y, 8 * N, &group)) return;
  const int part = blockIdx.z * warps + warp;
  const int parts = gridDim.z * warps;
  const int begin = p.m.units * part / parts;
  const int end = p.m.units * (part + 1) / parts;
  typename Work::Ring ring(
      p.m,
      group,
      tile,
      begin,
      end,
      shared + warp * Work::kStages * Work::Ring::kSlotBytes);
  ring.Begin();
  // Needed at the very end.
  int2 place = {};
  if (U != Use::kGateUp && lane < R && tile + lane < p.m.tiles) {
    place = p.m.places[tile + lane];
  }
  if (U != Use::kGateUp) WaitForKernelBefore();
  if (!kDense) LetNextKernelBegin();
  RowPointers<N> x, low;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int i = n * 8 + lane / 4;
    const bool there = i < group.count;
    const int64_t at =
        there ? static_cast<int64_t>(RowOf<U>(p, group, i)) * p.x_stride +
                    8 * (lane % 4)
              : 0;
    x.at[n] = there ? static_cast<const __nv_bfloat16*>(p.x) + at : nullptr;
    low.at[n] = there ? static_cast<const __nv_bfloat16*>(p.low) + at : nullptr;
  }
  Work work{ring, x, low};
  work.Run(begin, end);
  Finish<U, R, N>(
      p, group, tile, work.total, place, reinterpret_cast<float*>(shared));
}

}  // namespace conclave::kernels::cuda
