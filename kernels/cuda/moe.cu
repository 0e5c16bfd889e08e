// SPDX-License-Identifier: Apache-2.0
// Routing: docs/qwen3.5-moe 3.5, and the sorting of its pairs by expert.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_moe.h"

namespace conclave::kernels {
namespace cuda {
namespace {

constexpr int kExpertsMax = 1024;
constexpr int kPerLane = kExpertsMax / kLanes;
constexpr int kTopKMax = 32;
constexpr int kSortThreads = 1024;
constexpr unsigned kAll = 0xffffffffu;

__device__ float WarpMax(float x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, i));
  return x;
}

__device__ float WarpSum(float x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(kAll, x, i);
  return x;
}

struct Logits {
  const float* at;
  int32_t planes;
  int64_t plane_stride;

  __device__ float operator()(int64_t i) const {
    // A few on their way at once.
    constexpr int kAhead = 4;
    float sum = 0;
    for (int first = 0; first < planes; first += kAhead) {
      float value[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        value[j] =
            first + j < planes ? at[(first + j) * plane_stride + i] : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) sum += value[j];
    }
    return sum;
  }
};

// The chosen experts of one row, by one warp; lane l holds experts l, l + 32...
template <int PerLane>
__device__ void TopK(const Logits& logits, const DeviceEntries& e, int row) {
  const int lane = threadIdx.x % kLanes;
  const int experts = e.experts - 1;
  const int top_k = e.per_row - 1;
  const int64_t first = static_cast<int64_t>(row) * e.experts;
  float p[PerLane];
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < PerLane; ++i) {
    const int expert = i * kLanes + lane;
    p[i] = expert < experts ? logits(first + expert) : -INFINITY;
    largest = fmaxf(largest, p[i]);
  }
  largest = WarpMax(largest);
  const float gate = logits(first + experts);
  float mine = 0;  // probability of choice `lane`
  int chosen = 0;
  for (int k = 0; k < top_k; ++k) {
    float best = -INFINITY;
    int at = kExpertsMax;
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
      if (p[i] > best) {
        best = p[i];
        at = i * kLanes + lane;
      }
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
      const float other = __shfl_xor_sync(kAll, best, i);
      const int where = __shfl_xor_sync(kAll, at, i);
      if (other > best || (other == best && where < at)) {
        best = other;
        at = where;
      }
    }
    // Logits that are not numbers must still name experts that exist.
    if (at >= experts) at = k;
    if (lane == k) {
      mine = expf(best - largest);
      chosen = at;
    }
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
      if (i * kLanes + lane == at) p[i] = -INFINITY;
    }
  }
  // The softmax's own sum cancels against that of the chosen.
  const float sum = WarpSum(lane < top_k ? mine : 0.0f);
  const int64_t base = static_cast<int64_t>(row) * e.per_row;
  if (lane < top_k) {
    e.expert[base + lane] = chosen;
    e.weight[base + lane] = mine / sum;
  }
  if (lane == 0) {
    e.expert[base + top_k] = experts;
    e.weight[base + top_k] = 1.0f / (1.0f + expf(-gate));
  }
}

__device__ void TopKOfAny(const Logits& logits,
                          const DeviceEntries& e,
                          int row) {
  constexpr int kFew = 8, kSome = 16;  // experts of a lane
  if (e.experts - 1 <= kFew * kLanes) {
    TopK<kFew>(logits, e, row);
  } else if (e.experts - 1 <= kSome * kLanes) {
    TopK<kSome>(logits, e, row);
  } else {
    TopK<kPerLane>(logits, e, row);
  }
}

__global__ void Choose(Logits logits, DeviceEntries e) {
  WaitForKernelBefore();
  LetNextKernelBegin();
  const int row =
      static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / kLanes);
  if (row < e.rows) TopKOfAny(logits, e, row);
}

// Exclusive sums over the threads of a block.
__device__ int ExclusiveSum(int value, int* warp_sums, int* total) {
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

// One block of at most Threads threads. With `choose` it routes first.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    Sort(Logits logits, DeviceEntries e, bool choose) {
  __shared__ int counts[kSortThreads];
  __shared__ int next[kSortThreads];
  __shared__ int warp_sums[kLanes];
  __shared__ int total;
  WaitForKernelBefore();
  LetNextKernelBegin();
  const int thread = static_cast<int>(threadIdx.x);
  counts[thread] = 0;
  if (choose) {
    for (int row = thread / kLanes; row < e.rows; row += blockDim.x / kLanes) {
      TopKOfAny(logits, e, row);
    }
  }
  __syncthreads();
  const int pairs = e.rows * e.per_row;
  for (int i = thread; i < pairs; i += blockDim.x) {
    atomicAdd(&counts[e.expert[i]], 1);
  }
  __syncthreads();
  const int count = counts[thread];
  const int first = ExclusiveSum(count, warp_sums, &total);
  const int groups = (count + e.group_rows - 1) / e.group_rows;
  const int group = ExclusiveSum(groups, warp_sums, &total);
  next[thread] = first;
  for (int i = 0; i < groups; ++i) {
    reinterpret_cast<int4*>(e.groups)[group + i] = {
        thread,
        first + i * e.group_rows,
        min(e.group_rows, count - i * e.group_rows),
        0};
  }
  if (thread == 0) *e.group_count = total;
  __syncthreads();
  // The order of an expert's pairs decides no bit: each is a column alone.
  for (int i = thread; i < pairs; i += blockDim.x) {
    const int at = atomicAdd(&next[e.expert[i]], 1);
    e.row[at] = i / e.per_row;
    e.place[i] = at;
  }
}

}  // namespace
}  // namespace cuda

absl::Status DeviceRoute(DeviceQueue* queue,
                         const float* products,
                         int32_t planes,
                         const DeviceEntries& entries) {
  using cuda::kLanes;
  const cuda::Logits logits{
      products, planes, int64_t{entries.rows} * entries.experts};
  if (entries.experts > cuda::kSortThreads ||
      entries.per_row - 1 > cuda::kTopKMax ||
      entries.per_row > entries.experts) {
    return absl::InvalidArgumentError(absl::StrCat("routing on the GPU: top ",
                                                   entries.per_row - 1,
                                                   " of ",
                                                   entries.experts - 1));
  }
  constexpr int32_t kRowsOfOneBlock = cuda::kSortThreads / kLanes;
  constexpr int32_t kThreads = 256;
  const bool together = entries.rows <= kRowsOfOneBlock;
  if (!together) {
    constexpr int32_t kRows = kThreads / kLanes;
    RETURN_IF_ERROR(
        cuda::Launch(queue,
                     "routing",
                     cuda::Choose,
                     {.blocks = dim3((entries.rows + kRows - 1) / kRows),
                      .threads = dim3(kThreads)},
                     logits,
                     entries));
  }
  // A thread for every expert, a warp for every row.
  const int32_t least = std::max(entries.experts, kLanes * entries.rows);
  const int32_t threads =
      together
          ? std::min((least + kLanes - 1) / kLanes * kLanes, cuda::kSortThreads)
          : cuda::kSortThreads;
  // Few threads have room for more numbers each.
  constexpr int32_t kFewThreads = 512;
  return cuda::Launch(queue,
                      "sorting pairs",
                      threads <= kFewThreads ? cuda::Sort<kFewThreads>
                                             : cuda::Sort<cuda::kSortThreads>,
                      {.blocks = dim3(1), .threads = dim3(threads)},
                      logits,
                      entries,
                      together);
}

}  // namespace conclave::kernels
