// SPDX-License-Identifier: Apache-2.0
// Routing: docs/qwen3.5-moe 3.5, and the sorting of its pairs by expert.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pair_groups.cuh"
#include "kernels/device_moe.h"

namespace conclave::kernels {
namespace cuda {
namespace {

constexpr int kExpertsMax = 1024;
constexpr int kPerLane = kExpertsMax / kLanes;
constexpr int kTopKMax = 32;
constexpr int kSeveral = 3;  // planes at a time, where many warps route
constexpr int kSortThreads = 1024;
constexpr unsigned kAll = 0xffffffffu;

__device__ float WarpSum(float x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(kAll, x, i);
  return x;
}

struct Logits {
  const float* at;  // [planes, ...]
  int32_t planes;
  int64_t plane_stride;
};

// sums[i] = the logit of the row's expert i * 32 + lane, or -infinity; several
// planes are on their way at once.
template <int PerLane, int Ahead>
__device__ void SumPlanes(const Logits& logits,
                          int64_t row,
                          int experts,
                          float (&sums)[PerLane]) {
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int i = 0; i < PerLane; ++i) {
    sums[i] = i * kLanes + lane < experts ? 0.0f : -INFINITY;
  }
  for (int first = 0; first < logits.planes; first += Ahead) {
    float value[Ahead][PerLane];
#pragma unroll
    for (int j = 0; j < Ahead; ++j) {
      const float* from =
          logits.at + (first + j) * logits.plane_stride + row + lane;
#pragma unroll
      for (int i = 0; i < PerLane; ++i) {
        const bool there =
            first + j < logits.planes && i * kLanes + lane < experts;
        value[j][i] = there ? from[i * kLanes] : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < Ahead; ++j) {
#pragma unroll
      for (int i = 0; i < PerLane; ++i) sums[i] += value[j][i];
    }
  }
}

// Numbers that compare as the floats do; those that are no numbers are lowest.
__device__ uint32_t Rank(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float Unrank(uint32_t rank) {
  return __uint_as_float((rank & 0x80000000u) != 0 ? rank & 0x7fffffffu
                                                   : ~rank);
}

// The chosen experts of one row, by one warp; lane l holds experts l, l + 32...
// Returns choice `lane`, if there are so many.
template <int PerLane, int Ahead>
__device__ int TopK(const Logits& logits, const DeviceEntries& e, int row) {
  const int lane = threadIdx.x % kLanes;
  const int experts = e.experts - 1;
  const int top_k = e.per_row - 1;
  const int64_t first = static_cast<int64_t>(row) * e.experts;
  float p[PerLane];
  const float part =
      lane < logits.planes
          ? logits.at[lane * logits.plane_stride + first + experts]
          : 0.0f;
  SumPlanes<PerLane, Ahead>(logits, first, experts, p);
  uint32_t rank[PerLane];
#pragma unroll
  for (int i = 0; i < PerLane; ++i) rank[i] = Rank(p[i]);
  float largest = 0;
  float mine = 0;  // probability of choice `lane`
  int chosen = 0;
  for (int k = 0; k < top_k; ++k) {
    uint32_t best = 0;
    int at = kExpertsMax;
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
      if (rank[i] > best) {
        best = rank[i];
        at = i * kLanes + lane;
      }
    }
    const uint32_t most = __reduce_max_sync(kAll, best);
    at = static_cast<int>(__reduce_min_sync(
        kAll, best == most ? static_cast<unsigned>(at) : kExpertsMax));
    // Logits that are not numbers must still name experts that exist.
    if (at >= experts) at = k;
    const float value = Unrank(most);
    if (k == 0) largest = value;
    if (lane == k) {
      mine = expf(value - largest);
      chosen = at;
    }
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
      if (i * kLanes + lane == at) rank[i] = 0;
    }
  }
  // The softmax's own sum cancels against that of the chosen.
  const float sum = WarpSum(lane < top_k ? mine : 0.0f);
  const int64_t base = static_cast<int64_t>(row) * e.per_row;
  if (lane < top_k) {
    e.expert[base + lane] = chosen;
    e.weight[base + lane] = mine / sum;
  }
  float gate = 0;
  for (int j = 0; j < logits.planes; ++j) gate += __shfl_sync(kAll, part, j);
  if (lane == 0) {
    e.expert[base + top_k] = experts;
    e.weight[base + top_k] = 1.0f / (1.0f + expf(-gate));
  }
  return chosen;
}

// Ahead: planes that are on their way at a time, where registers allow it.
template <int Ahead>
__device__ int TopKOfAny(const Logits& logits,
                         const DeviceEntries& e,
                         int row) {
  constexpr int kFew = 8, kSome = 16;  // experts of a lane
  if (e.experts - 1 <= kFew * kLanes) {
    return TopK<kFew, Ahead>(logits, e, row);
  }
  if (e.experts - 1 <= kSome * kLanes) {
    return TopK<kSome, Ahead>(logits, e, row);
  }
  return TopK<kPerLane, kSeveral>(logits, e, row);
}

// One row, one warp: each choice is a group of its own, in no further order.
__global__ void __launch_bounds__(kLanes)
    ChooseForOne(Logits logits, DeviceEntries e) {
  WaitForKernelBefore();
  LetNextKernelBegin();
  const int chosen = TopKOfAny<kPlanesMax>(logits, e, 0);
  const int lane = static_cast<int>(threadIdx.x);
  for (int pair = lane; pair < e.per_row; pair += kLanes) {
    const int expert = pair + 1 < e.per_row ? chosen : e.experts - 1;
    reinterpret_cast<int4*>(e.groups)[pair] = {expert, pair, 1, 0};
    e.row[pair] = 0;
    e.place[pair] = pair;
  }
  if (lane == 0) *e.group_count = e.per_row;
}

__global__ void Choose(Logits logits, DeviceEntries e) {
  WaitForKernelBefore();
  LetNextKernelBegin();
  const int row =
      static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / kLanes);
  if (row < e.rows) TopKOfAny<kSeveral>(logits, e, row);
}

// One block of at most Threads threads. With Chooses it routes first.
template <int Threads, bool Chooses>
__global__ void __launch_bounds__(Threads)
    Sort(Logits logits, DeviceEntries e) {
  __shared__ int counts[kSortThreads];
  __shared__ int next[kSortThreads];
  __shared__ int warp_sums[kLanes];
  __shared__ int total;
  __shared__ int ids[kSortThreads];  // of the first pairs
  WaitForKernelBefore();
  LetNextKernelBegin();
  const int thread = static_cast<int>(threadIdx.x);
  counts[thread] = 0;
  if constexpr (Chooses) {
    for (int row = thread / kLanes; row < e.rows; row += blockDim.x / kLanes) {
      TopKOfAny<kSeveral>(logits, e, row);
    }
  }
  __syncthreads();
  const int pairs = e.rows * e.per_row;
  for (int i = thread; i < pairs; i += blockDim.x) {
    const int id = e.expert[i];
    if (i < kSortThreads) ids[i] = id;
    atomicAdd(&counts[id], 1);
  }
  __syncthreads();
  MakeGroups(e, counts[thread], next, warp_sums, &total);
  // The order of an expert's pairs decides no bit: each is a column alone.
  for (int i = thread; i < pairs; i += blockDim.x) {
    const int id = i < kSortThreads ? ids[i] : e.expert[i];
    const int at = atomicAdd(&next[id], 1);
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
  CONCLAVE_CHECK_LE(planes, kPlanesMax);
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
  if (entries.rows == 1) {
    return cuda::Launch(queue,
                        "routing a row",
                        cuda::ChooseForOne,
                        {.blocks = dim3(1), .threads = dim3(kLanes)},
                        logits,
                        entries);
  }
  // Few rows are routed and sorted by one block: a warp for every row, a thread
  // for every expert, and for each thread room for its numbers.
  constexpr int32_t kFewThreads = 512, kThreads = 256;
  const int32_t least = std::max(entries.experts, kLanes * entries.rows);
  const int32_t few = (least + kLanes - 1) / kLanes * kLanes;
  if (few <= kFewThreads) {
    return cuda::Launch(queue,
                        "routing and sorting pairs",
                        cuda::Sort<kFewThreads, true>,
                        {.blocks = dim3(1), .threads = dim3(few)},
                        logits,
                        entries);
  }
  constexpr int32_t kRows = kThreads / kLanes;
  RETURN_IF_ERROR(
      cuda::Launch(queue,
                   "routing",
                   cuda::Choose,
                   {.blocks = dim3((entries.rows + kRows - 1) / kRows),
                    .threads = dim3(kThreads)},
                   logits,
                   entries));
  return cuda::Launch(queue,
                      "sorting pairs",
                      cuda::Sort<cuda::kSortThreads, false>,
                      {.blocks = dim3(1), .threads = dim3(cuda::kSortThreads)},
                      logits,
                      entries);
}

}  // namespace conclave::kernels
