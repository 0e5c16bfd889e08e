// SPDX-License-Identifier: Apache-2.0
// The sum over ranks by one-sided stores. A rank stores its part of a row into
// a slot of every other rank's memory; who reads a slot waits until no number
// of it is empty, and empties it again. So the data say that they are there.
// A number is stored and read as a whole, four at a time.
//
// Two buffers, in turn, are enough: who sends sum n + 2 has ended its kernel of
// sum n + 1, and so has seen the part, or the word, of each rank at n + 1;
// those ranks' kernels of sum n, which emptied the slots, had ended before.
#include "common/check.h"
#include "kernels/cuda/group_wait.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

namespace conclave::kernels {
namespace cuda {
namespace {

struct PeerArgs {
  AddNormArgs add;
  int32_t rows;
  int32_t ranks;
  int32_t only;
  bool alone;    // no other lane needs room on the device
  int64_t slot;  // floats of one
  // This sum's buffer on each rank's device, [ranks, rows_max, cols].
  float* buffer[limits::kRanksMax];
  PeerWait wait;
};

__device__ __forceinline__ void StoreFar(float* to, uint4 v) {
  asm volatile("st.relaxed.sys.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to),
               "r"(v.x),
               "r"(v.y),
               "r"(v.z),
               "r"(v.w)
               : "memory");
}

__device__ __forceinline__ uint4 LoadFar(const float* from) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

// A NaN as numbers have it, whatever its bits were.
__device__ __forceinline__ uint32_t NeverEmpty(float x) {
  constexpr uint32_t kNan = 0x7fffffffu;
  return isnan(x) ? kNan : __float_as_uint(x);
}

__device__ __forceinline__ bool HasEmpty(uint4 v) {
  return v.x == kEmpty || v.y == kEmpty || v.z == kEmpty || v.w == kEmpty;
}

__device__ __forceinline__ bool HasPart(const PeerArgs& a, int rank) {
  return a.only < 0 || a.only == rank;
}

// Waits for a vector of rank `from`; false: the step has ended.
__device__ bool Receive(const PeerArgs& a, int from, float* at, uint4* v) {
  constexpr int kPolls = 64;  // between two looks at the clock
  *v = LoadFar(at);
  if (HasEmpty(*v)) {
    const int64_t begin = NowNs();
    for (int poll = 1; HasEmpty(*v); ++poll) {
      if (poll % kPolls == 0 && MustEnd(a.wait, from, begin, poll / kPolls)) {
        return false;
      }
      *v = LoadFar(at);
    }
  }
  StoreFar(at, {kEmpty, kEmpty, kEmpty, kEmpty});
  return true;
}

// This rank's part of a row into its slot everywhere, its own too. Without a
// part one vector says that it came.
__device__ void Send(const PeerArgs& a, int64_t row, Choices* choices) {
  const int64_t vectors = a.add.cols / 4;
  if (!HasPart(a, a.wait.rank)) {
    if (threadIdx.x > 0) return;
    for (int to = 0; to < a.ranks; ++to) {
      if (to == a.wait.rank) continue;
      StoreFar(a.buffer[to] + a.wait.rank * a.slot + row * a.add.cols,
               {0, 0, 0, 0});
    }
    return;
  }
  if (a.add.pairs != nullptr) {
    __syncthreads();  // the row before is done with them
    ReadChoices(a.add, row, choices);
  }
  for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
    const float4 part = a.add.pairs != nullptr
                            ? PairsPart(a.add, *choices, v)
                            : DensePart(a.add, row, v, a.rows);
    const uint4 bits = {NeverEmpty(part.x),
                        NeverEmpty(part.y),
                        NeverEmpty(part.z),
                        NeverEmpty(part.w)};
    const int64_t at = a.wait.rank * a.slot + row * a.add.cols + 4 * v;
    for (int i = 0; i < a.ranks; ++i) {
      // The farthest first, this device's own last.
      const int to = (a.wait.rank + 1 + i) % a.ranks;
      StoreFar(a.buffer[to] + at, bits);
    }
  }
}

// Vector v of the sum over ranks; false: the step has ended.
__device__ bool SumOf(const PeerArgs& a, int64_t row, int64_t v, float4* all) {
  *all = {0, 0, 0, 0};
  for (int from = 0; from < a.ranks; ++from) {
    const bool part = HasPart(a, from);
    // Who has none said so in the first vector, and to others only.
    if (!part && (v > 0 || from == a.wait.rank)) continue;
    uint4 bits;
    float* at =
        a.buffer[a.wait.rank] + from * a.slot + row * a.add.cols + 4 * v;
    if (!Receive(a, from, at, &bits)) return false;
    if (!part) continue;
    *all = Plus(*all,
                {__uint_as_float(bits.x),
                 __uint_as_float(bits.y),
                 __uint_as_float(bits.z),
                 __uint_as_float(bits.w)},
                1.0f);
  }
  return true;
}

// All blocks are on the device at once: each sends all its rows before it
// waits for any.
__global__ void __launch_bounds__(kThreadsMax) PeerSum(PeerArgs a) {
  __shared__ float shared[kLanes];
  __shared__ Choices choices;
  // While this waits for another rank, blocks of the next kernel would wait
  // too, in the room that another lane's kernels need to come to an end.
  if (a.alone) LetNextKernelBegin();
  const int64_t vectors = a.add.cols / 4;
  float4 w[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t v = i * blockDim.x + threadIdx.x;
    if (v < vectors) w[i] = reinterpret_cast<const float4*>(a.add.w)[v];
  }
  WaitForKernelBefore();
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    Send(a, row, &choices);
  }
  bool whole = true;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    auto* x = reinterpret_cast<float4*>(a.add.x) + row * vectors;
    float4 value[kVectors];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t v = i * blockDim.x + threadIdx.x;
      if (v >= vectors) continue;
      float4 all;
      whole = whole && SumOf(a, row, v, &all);
      if (!whole) all = {0, 0, 0, 0};
      value[i] = Plus(x[v], all, 1.0f);
      x[v] = value[i];
      sum += value[i].x * value[i].x + value[i].y * value[i].y +
             value[i].z * value[i].z + value[i].w * value[i].w;
    }
    StoreNormed(a.add, row, value, w, BlockSum(sum, shared));
    // All have read `shared`; and they leave together.
    whole = __syncthreads_and(whole) != 0;
  }
  if (threadIdx.x == 0 && !whole) {
    NotWhole(a.wait);
  }
}

// Block row: the part into `to`, without waiting for anybody.
__global__ void __launch_bounds__(kThreadsMax) StorePart(AddNormArgs a,
                                                         float* to,
                                                         GroupWords::Rank* own,
                                                         int32_t number,
                                                         bool part) {
  __shared__ Choices choices;
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int64_t row = blockIdx.x;
  const int64_t vectors = a.cols / 4;
  if (row == 0 && threadIdx.x == 0) Came(own, number);
  if (!part) return;
  if (a.pairs != nullptr) ReadChoices(a, row, &choices);
  for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
    reinterpret_cast<float4*>(to)[row * vectors + v] =
        a.pairs != nullptr ? PairsPart(a, choices, v)
                           : DensePart(a, row, v, gridDim.x);
  }
}

AddNormArgs ArgsFor(const DeviceGroup::Options& options, const GroupSum& sum) {
  return ArgsOf(sum.part, options.cols, sum.w, sum.eps, sum.x, sum.u, sum.low);
}

}  // namespace

absl::Status QueuePeerSum(DeviceGroup::Impl* group,
                          int32_t rank,
                          const GroupSum& sum) {
  const size_t slot = group->SlotFloats();
  PeerArgs args{.add = ArgsFor(group->options, sum),
                .rows = sum.rows,
                .ranks = static_cast<int32_t>(group->ranks.size()),
                .only = sum.only,
                .alone = group->options.lanes == 1,
                .slot = static_cast<int64_t>(slot),
                .buffer = {},
                .wait = WaitOf(*group, rank, sum.number)};
  const size_t buffer = static_cast<size_t>(sum.number) % kGroupBuffers;
  for (size_t i = 0; i < group->ranks.size(); ++i) {
    args.buffer[i] =
        group->ranks[i].slots.as<float>() + buffer * group->ranks.size() * slot;
  }
  DeviceQueue* queue = group->ranks[static_cast<size_t>(rank)].queue;
  // Two lanes leave half of the multiprocessors to kernels that do not wait.
  const int32_t share = args.alone ? 1 : 2 * group->options.lanes;
  const int32_t blocks =
      std::min(sum.rows, std::max(1, queue->multiprocessors() / share));
  return Launch(
      queue,
      "sum over GPUs",
      PeerSum,
      {.blocks = dim3(blocks), .threads = dim3(ThreadsOf(group->options.cols))},
      args);
}

absl::Status QueuePart(DeviceGroup::Impl* group,
                       int32_t rank,
                       const GroupSum& sum,
                       float* to) {
  const bool part = sum.only < 0 || sum.only == rank;
  return Launch(group->ranks[static_cast<size_t>(rank)].queue,
                "a GPU's part of a sum",
                StorePart,
                {.blocks = dim3(part ? sum.rows : 1),
                 .threads = dim3(ThreadsOf(group->options.cols))},
                ArgsFor(group->options, sum),
                to,
                &group->words->ranks[rank],
                sum.number,
                part);
}

}  // namespace cuda
}  // namespace conclave::kernels
