// SPDX-License-Identifier: Apache-2.0
// Columns of every rank to rank 0 by one-sided stores: a rank's blocks store
// into rank 0's rows, each makes sure that its stores are there, and the last
// one counts the rank's word in rank 0's memory up. Rank 0 waits for the words.
//
// Rank 0's rows are free for the next step's columns: who sends those has ended
// that step's sums, to which rank 0 came behind all that read these. Where no
// sum lies between, `again`, rank 0 says that it is ready, and who sends waits.
#include <algorithm>
#include <cstdint>

#include "common/check.h"
#include "kernels/cuda/group_wait.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // vectors of a thread on their way at once

// Elements of 4 bytes, [rows, cols], into rows that are `stride` apart.
struct Columns {
  const float* from;
  float* to;
  uint32_t rows;
  uint32_t cols;
  uint32_t stride;
};

struct SendArgs {
  Columns columns;
  PeerWait wait;
  bool again;
  bool alone;        // no other lane needs room on the device
  RankWords* words;  // this rank's
  RankWords* first;  // rank 0's
};

struct AwaitArgs {
  PeerWait wait;
  int32_t ranks;
  bool alone;
  // Of all ranks; null: it sends nothing.
  RankWords* words[limits::kRanksMax];
};

__device__ __forceinline__ int32_t ReadArrived(const int32_t* word) {
  int32_t value;
  asm volatile("ld.acquire.sys.global.b32 %0, [%1];"
               : "=r"(value)
               : "l"(word)
               : "memory");
  return value;
}

// The count after this one.
__device__ __forceinline__ int32_t Next(int32_t count) {
  return static_cast<int32_t>(static_cast<uint32_t>(count) + 1u);
}

// Waits until rank `from` has counted a word of this device up to `count`;
// false: the step has ended.
__device__ bool Await(const PeerWait& a,
                      int from,
                      const int32_t* word,
                      int32_t count) {
  constexpr int kPolls = 64;  // between two looks at the clock
  const auto there = [&] {
    return static_cast<int32_t>(static_cast<uint32_t>(ReadArrived(word)) -
                                static_cast<uint32_t>(count)) >= 0;
  };
  if (there()) return true;
  const int64_t begin = NowNs();
  for (int poll = 1; !there(); ++poll) {
    if (poll % kPolls == 0 && MustEnd(a, from, begin, poll / kPolls)) {
      return false;
    }
  }
  return true;
}

// By all blocks, in vectors of type V.
template <typename V>
__device__ __forceinline__ void StoreColumns(const Columns& c) {
  constexpr uint32_t kEach = sizeof(V) / sizeof(float);
  const auto* from = reinterpret_cast<const V*>(c.from);
  auto* to = reinterpret_cast<V*>(c.to);
  const uint32_t cols = c.cols / kEach;
  const uint32_t all = c.rows * cols;
  const uint32_t threads = gridDim.x * blockDim.x;
  const uint32_t mine = blockIdx.x * blockDim.x + threadIdx.x;
  for (uint32_t first = mine; first < all; first += kAhead * threads) {
    V value[kAhead];
#pragma unroll
    for (uint32_t j = 0; j < kAhead; ++j) {
      const uint32_t i = first + j * threads;
      if (i < all) value[j] = from[i];
    }
#pragma unroll
    for (uint32_t j = 0; j < kAhead; ++j) {
      const uint32_t i = first + j * threads;
      if (i >= all) continue;
      const uint32_t row = i / cols;
      to[size_t{row} * (c.stride / kEach) + (i - row * cols)] = value[j];
    }
  }
}

template <typename V>
__global__ void __launch_bounds__(kThreads) SendColumns(SendArgs a) {
  if (a.alone) LetNextKernelBegin();
  WaitForKernelBefore();
  // Nobody counts it up before all blocks have read it.
  const int32_t count = Next(ReadWord(&a.words->gathered));
  bool whole = true;
  if (a.again && threadIdx.x == 0) {
    whole = Await(a.wait, 0, &a.words->ready, count);
    if (!whole) NotWhole(a.wait);
  }
  if (__syncthreads_and(whole) == 0) return;
  StoreColumns<V>(a.columns);
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x > 0) return;
  // What the others of the block stored comes before the count, too.
  __threadfence_system();
  if (atomicAdd(&a.words->blocks, 1) + 1 < static_cast<int>(gridDim.x)) return;
  a.words->blocks = 0;
  a.words->gathered = count;
  __threadfence_system();
  WriteWord(&a.first->arrived[a.wait.rank], count);
}

// One warp: a lane waits for a rank.
__global__ void __launch_bounds__(kLanes) AwaitColumns(AwaitArgs a) {
  if (a.alone) LetNextKernelBegin();
  WaitForKernelBefore();
  RankWords* own = a.words[0];
  const int32_t count = Next(ReadWord(&own->gathered));
  const int from = static_cast<int>(threadIdx.x);
  bool whole = true;
  if (from > 0 && from < a.ranks && a.words[from] != nullptr) {
    WriteWord(&a.words[from]->ready, count);
    whole = Await(a.wait, from, &own->arrived[from], count);
  }
  whole = __all_sync(0xffffffffu, whole) != 0;
  if (from > 0) return;
  own->gathered = count;
  if (!whole) NotWhole(a.wait);
}

template <typename V>
__global__ void __launch_bounds__(kThreads) PlaceColumns(Columns c) {
  LetNextKernelBegin();
  WaitForKernelBefore();
  StoreColumns<V>(c);
}

__global__ void NoteCame(GroupWords::Rank* own) {
  LetNextKernelBegin();
  WaitForKernelBefore();
  Came(own, DeviceGroup::kGathering);
}

Columns ColumnsOf(const DeviceGroup::Impl& group,
                  size_t rank,
                  int32_t rows,
                  const float* from) {
  const int64_t stride = group.options.columns.back();
  CONCLAVE_CHECK_LE(rows * stride, int64_t{INT32_MAX});
  return {.from = from,
          .to = group.rows + group.options.columns[rank],
          .rows = static_cast<uint32_t>(rows),
          .cols = static_cast<uint32_t>(group.ColumnsOf(rank)),
          .stride = static_cast<uint32_t>(stride)};
}

// Whether each row begins at a multiple of four columns.
bool InFours(const Columns& c) { return c.cols % 4 == 0 && c.stride % 4 == 0; }

int32_t BlocksOf(const Columns& c, int32_t blocks_max) {
  const int64_t vectors = int64_t{c.rows} * c.cols / (InFours(c) ? 4 : 1);
  constexpr int64_t kEach = int64_t{kThreads} * kAhead;
  return static_cast<int32_t>(
      std::clamp<int64_t>((vectors + kEach - 1) / kEach, 1, blocks_max));
}

}  // namespace

absl::Status QueuePeerColumns(DeviceGroup::Impl* group,
                              int32_t rank,
                              const GroupColumns& what) {
  const auto own = static_cast<size_t>(rank);
  DeviceQueue* queue = group->ranks[own].queue;
  const bool alone = group->options.lanes == 1;
  const PeerWait wait = WaitOf(*group, rank, DeviceGroup::kGathering);
  if (rank > 0) {
    const SendArgs args{.columns = ColumnsOf(*group, own, what.rows, what.part),
                        .wait = wait,
                        .again = what.again,
                        .alone = alone,
                        .words = WordsOf(*group, own),
                        .first = WordsOf(*group, 0)};
    // As sums do, two lanes leave half of the multiprocessors to others.
    const int32_t share = alone ? 1 : 2 * group->options.lanes;
    const int32_t most = std::max(1, queue->multiprocessors() / share);
    return Launch(
        queue,
        "columns for GPU 0",
        InFours(args.columns) ? SendColumns<float4> : SendColumns<float>,
        {.blocks = dim3(BlocksOf(args.columns, most)),
         .threads = dim3(kThreads)},
        args);
  }
  AwaitArgs args{.wait = wait,
                 .ranks = static_cast<int32_t>(group->ranks.size()),
                 .alone = alone,
                 .words = {}};
  for (size_t i = 0; i < group->ranks.size(); ++i) {
    const bool sends = i == 0 || group->ColumnsOf(i) > 0;
    args.words[i] = sends ? WordsOf(*group, i) : nullptr;
  }
  return Launch(queue,
                "waiting for other GPUs' columns",
                AwaitColumns,
                {.blocks = dim3(1), .threads = dim3(kLanes)},
                args);
}

absl::Status QueuePlace(DeviceGroup::Impl* group,
                        int32_t of,
                        int32_t rows,
                        const float* from) {
  const Columns c = ColumnsOf(*group, static_cast<size_t>(of), rows, from);
  DeviceQueue* queue = group->ranks[0].queue;
  return Launch(queue,
                "placing another GPU's columns",
                InFours(c) ? PlaceColumns<float4> : PlaceColumns<float>,
                {.blocks = dim3(BlocksOf(c, queue->multiprocessors())),
                 .threads = dim3(kThreads)},
                c);
}

absl::Status QueueCame(DeviceGroup::Impl* group, int32_t rank) {
  return Launch(group->ranks[static_cast<size_t>(rank)].queue,
                "a GPU's word",
                NoteCame,
                {.blocks = dim3(1), .threads = dim3(1)},
                &group->words->ranks[rank]);
}

}  // namespace conclave::kernels::cuda
