// SPDX-License-Identifier: Apache-2.0
// The pairs of rows whose router ran elsewhere, sorted for the experts here.
#include "common/status_macros.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pair_groups.cuh"
#include "kernels/device_held_pairs.h"

namespace conclave::kernels {
namespace cuda {
namespace {

constexpr int kThreads = kHeldNumbersMax;  // a thread for every number

__device__ int NumberOf(const DeviceHeld& held, int expert) {
  const bool exists = expert >= 0 && expert < held.experts;
  return exists ? held.number[expert] : -1;
}

// first[r] of all rows; a thread takes some rows that follow each other.
__device__ void CountRows(const DeviceChoices& c,
                          const DeviceHeld& held,
                          int32_t* first,
                          int* warp_sums,
                          int* total) {
  const int each = (c.rows + kThreads - 1) / kThreads;
  const int begin = min(c.rows, static_cast<int>(threadIdx.x) * each);
  const int end = min(c.rows, begin + each);
  int mine = 0;
  for (int i = begin * c.per_row; i < end * c.per_row; ++i) {
    if (NumberOf(held, c.expert[i]) >= 0) ++mine;
  }
  int at = ExclusiveSum(mine, warp_sums, total);
  for (int r = begin; r < end; ++r) {
    first[r] = at;
    for (int j = 0; j < c.per_row; ++j) {
      if (NumberOf(held, c.expert[r * c.per_row + j]) >= 0) ++at;
    }
  }
  if (threadIdx.x == 0) first[c.rows] = *total;
  __syncthreads();
}

// One block.
__global__ void __launch_bounds__(kThreads)
    SortHeld(DeviceChoices c, DeviceHeld held, HeldPairs to) {
  __shared__ int counts[kThreads];
  __shared__ int next[kThreads];
  __shared__ int warp_sums[kLanes];
  __shared__ int total;
  WaitForKernelBefore();
  LetNextKernelBegin();
  const DeviceEntries& e = to.entries;
  const int thread = static_cast<int>(threadIdx.x);
  const int pairs = c.rows * c.per_row;
  counts[thread] = 0;
  __syncthreads();
  for (int i = thread; i < pairs; i += kThreads) {
    const int number = NumberOf(held, c.expert[i]);
    if (number >= 0) atomicAdd(&counts[number], 1);
  }
  __syncthreads();
  MakeGroups(e, counts[thread], next, warp_sums, &total);
  CountRows(c, held, to.first, warp_sums, &total);
  // The order of a number's pairs decides no bit: each is a column alone. That
  // of a row's pairs does: ascending numbers.
  for (int i = thread; i < pairs; i += kThreads) {
    const int number = NumberOf(held, c.expert[i]);
    e.place[i] = -1;
    if (number < 0) continue;
    const int at = atomicAdd(&next[number], 1);
    const int row = i / c.per_row;
    e.row[at] = row;
    e.place[i] = at;
    int before = 0;
    for (int j = row * c.per_row; j < (row + 1) * c.per_row; ++j) {
      const int other = NumberOf(held, c.expert[j]);
      if (other >= 0 && (other < number || (other == number && j < i))) {
        ++before;
      }
    }
    to.pair[to.first[row] + before] = at;
    to.weight[to.first[row] + before] = c.weight[i];
  }
}

}  // namespace
}  // namespace cuda

absl::Status DeviceHeldPairs(DeviceQueue* queue,
                             const DeviceChoices& choices,
                             const DeviceHeld& held,
                             const HeldPairs& pairs) {
  RETURN_IF_ERROR(CheckHeld(held));
  return cuda::Launch(queue,
                      "sorting the pairs of rows",
                      cuda::SortHeld,
                      {.blocks = dim3(1), .threads = dim3(cuda::kThreads)},
                      choices,
                      held,
                      pairs);
}

}  // namespace conclave::kernels
