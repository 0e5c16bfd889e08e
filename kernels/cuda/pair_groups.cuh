// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/fragments.cuh"
#include "kernels/device_product.h"

// Pairs of rows and experts in groups, by one block with a thread for every
// expert. warp_sums: [kLanes], shared, as *total is.
namespace conclave::kernels::cuda {

// Exclusive sums over the threads of a block.
__device__ inline int ExclusiveSum(int value, int* warp_sums, int* total) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  int sum = value;
#pragma unroll
  for (int i = 1; i < kLanes; i *= 2) {
    const int other = __shfl_up_sync(kAll, sum, i);
    if (lane >= i) sum += other;
  }
  if (lane == kLanes - 1) warp_sums[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    const int warps = static_cast<int>(blockDim.x) / kLanes;
    const int mine = lane < warps ? warp_sums[lane] : 0;
    int all = mine;
#pragma unroll
    for (int i = 1; i < kLanes; i *= 2) {
      const int other = __shfl_up_sync(kAll, all, i);
      if (lane >= i) all += other;
    }
    warp_sums[lane] = all - mine;
    if (lane == kLanes - 1) *total = all;
  }
  __syncthreads();
  const int before = warp_sums[warp] + sum - value;
  __syncthreads();
  return before;
}

// Groups of the expert whose number is the thread's and which has `count`
// pairs; next[thread]: where these begin.
__device__ inline void MakeGroups(
    const DeviceEntries& e, int count, int* next, int* warp_sums, int* total) {
  const int thread = static_cast<int>(threadIdx.x);
  const int first = ExclusiveSum(count, warp_sums, total);
  const int groups = (count + e.group_rows - 1) / e.group_rows;
  const int group = ExclusiveSum(groups, warp_sums, total);
  next[thread] = first;
  for (int i = 0; i < groups; ++i) {
    reinterpret_cast<int4*>(e.groups)[group + i] = {
        thread,
        first + i * e.group_rows,
        min(e.group_rows, count - i * e.group_rows),
        0};
  }
  if (thread == 0) *e.group_count = *total;
  __syncthreads();
}

}  // namespace conclave::kernels::cuda
