// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sampling_row.cuh"

// What a block needs to find where top-k and top-p cut a row.
namespace conclave::kernels::cuda {

// The first histogram's: 1/16 of the exponent wide, up to kReach.
constexpr int kSampleBins = 512;
// The others'; one a thread.
constexpr int kDigitBits = 10;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kSampleThreads && kSampleBins <= kSampleThreads);
// Ranks that are kept in shared memory once no more are left: 32 KiB, as much
// as 48 KiB hold beside the bins.
constexpr uint32_t kListed = 4096;

// Of a set of tokens. Without initial values, so that it may be shared memory.
struct Mass {
  uint64_t weight;
  uint32_t count;
};

__device__ __forceinline__ Mass operator+(const Mass& a, const Mass& b) {
  return {a.weight + b.weight, a.count + b.count};
}
__device__ __forceinline__ Mass operator-(const Mass& a, const Mass& b) {
  return {a.weight - b.weight, a.count - b.count};
}

// What the tokens from the best on must reach.
struct Goal {
  bool by_weight = false;  // else by count
  uint64_t amount = 0;     // at least 1
  __device__ uint64_t Of(const Mass& mass) const {
    return by_weight ? mass.weight : mass.count;
  }
};

struct SelectMemory {
  uint32_t low[kDigits];  // of a bin's weight
  uint32_t high[kDigits];
  uint32_t count[kDigits];
  uint64_t list[kListed];
  uint32_t listed;
  Mass warps[kSampleWarps];
  // The bin that was found, and all that is better than it.
  uint32_t bin;
  uint32_t in_bin;
  Mass better;
  uint64_t first;  // ranks of the bin
  uint64_t last;
};

// 64-bit sums by 32-bit atomics, the only ones that shared memory does itself:
// each wrap of the low word is seen by exactly one thread.
__device__ __forceinline__ void AddToBin(SelectMemory& s,
                                         uint32_t bin,
                                         uint64_t weight) {
  const auto low = static_cast<uint32_t>(weight);
  const uint32_t before = atomicAdd(&s.low[bin], low);
  const uint32_t carry = before + low < before ? 1 : 0;
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + carry;
  if (high != 0) atomicAdd(&s.high[bin], high);
  atomicAdd(&s.count[bin], 1u);
}

__device__ __forceinline__ void ClearBins(SelectMemory& s) {
  s.low[threadIdx.x] = 0;
  s.high[threadIdx.x] = 0;
  s.count[threadIdx.x] = 0;
  __syncthreads();
}

__device__ __forceinline__ Mass MassOfBin(const SelectMemory& s, uint32_t bin) {
  return {uint64_t{s.high[bin]} << 32 | s.low[bin], s.count[bin]};
}

// Over the block, the same for all threads.
__device__ __forceinline__ uint64_t MaxOfBlock(uint64_t x) {
  __shared__ uint64_t warps[kSampleWarps];
  for (int step = 16; step > 0; step /= 2) {
    x = max(x, __shfl_xor_sync(~0u, x, step));
  }
  __syncthreads();  // an earlier call's are read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  for (const uint64_t other : warps) x = max(x, other);
  return x;
}

struct Scanned {
  Mass upto = {};  // of the threads up to this one
  Mass all = {};
};

__device__ __forceinline__ Scanned ScanBlock(const Mass& mine,
                                             Mass (&warps)[kSampleWarps]) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  Scanned out;
  out.upto = mine;
  for (unsigned step = 1; step < 32; step *= 2) {
    const Mass other = {__shfl_up_sync(~0u, out.upto.weight, step),
                        __shfl_up_sync(~0u, out.upto.count, step)};
    if (lane >= step) out.upto = out.upto + other;
  }
  __syncthreads();  // an earlier call's are read
  if (lane == 31) warps[warp] = out.upto;
  __syncthreads();
  for (unsigned i = 0; i < kSampleWarps; ++i) {
    if (i < warp) out.upto = out.upto + warps[i];
    out.all = out.all + warps[i];
  }
  return out;
}

// The bin by which the goal is reached. Every thread has one, `bin` with the
// tokens `mine`, better bins in lower threads; `better` is better than all.
__device__ __forceinline__ void FindBin(const Mass& better,
                                        const Mass& mine,
                                        const Goal& goal,
                                        uint32_t bin,
                                        SelectMemory& s) {
  const Mass upto = better + ScanBlock(mine, s.warps).upto;
  const Mass before = upto - mine;
  if (goal.Of(before) < goal.amount && goal.Of(upto) >= goal.amount) {
    s.bin = bin;
    s.in_bin = mine.count;
    s.better = before;
  }
  __syncthreads();
}

}  // namespace conclave::kernels::cuda
