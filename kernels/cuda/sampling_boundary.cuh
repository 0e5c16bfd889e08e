// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sampling_row.cuh"
#include "kernels/cuda/sampling_select.cuh"

// Where top-k and top-p cut a row, without sorting it: by histograms of what
// is left, each over a narrower range of ranks. One block works on it.
namespace conclave::kernels::cuda {

// kSampleBins for what weighs nothing.
__device__ __forceinline__ int BinAt(double distance) {
  if (distance >= kReach) return kSampleBins;
  return static_cast<int>(distance * (kSampleBins / kReach));
}

// The least rank, of any id, whose bin is `bin` or a better one: a search over
// the bits of values, whose bins fall as they grow.
__device__ __forceinline__ uint64_t LeastRankOfBin(const SampleRow& row,
                                                   int bin) {
  auto low = static_cast<uint32_t>(RankOf(-3.402823466e38f, 0) >> 32);
  auto high = static_cast<uint32_t>(RankOf(row.largest, 0) >> 32);
  while (low < high) {  // the bin of `high` is good enough
    const uint32_t middle = low + (high - low) / 2;
    if (BinAt(Distance(row, ValueOf(uint64_t{middle} << 32))) <= bin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return uint64_t{low} << 32;
}

// each(rank) for the tokens whose ranks are in [s.first, s.last].
template <typename Each>
__device__ __forceinline__ void ForRanks(const SampleRow& row,
                                         const SelectMemory& s,
                                         bool listed,
                                         Each each) {
  const uint64_t first = s.first;
  const uint64_t last = s.last;
  if (listed) {
    for (uint32_t i = threadIdx.x; i < s.listed; i += kSampleThreads) {
      const uint64_t rank = s.list[i];
      if (rank >= first && rank <= last) each(rank);
    }
    return;
  }
  ForTokens(row, 0, row.vocab_used, [&](float x, int32_t id) {
    const uint64_t rank = RankOf(x, id);
    if (rank >= first && rank <= last) each(rank);
  });
}

struct Boundary {
  uint64_t rank = 0;    // of the last token that the goal needs
  uint64_t weight = 0;  // of all tokens up to it
};

// mine: the first histogram, whose total reaches the goal; a bin a thread.
// Takes the bin in which the goal is reached, then, as long as it holds more
// than one token, spreads it by the first bits in which its ranks differ.
__device__ __forceinline__ Boundary FindBoundary(const SampleRow& row,
                                                 const Mass& mine,
                                                 const Goal& goal,
                                                 SelectMemory& s) {
  FindBin({}, mine, goal, threadIdx.x, s);
  const int bin = static_cast<int>(s.bin);
  if (threadIdx.x == 0) {
    s.listed = 0;
    s.first = LeastRankOfBin(row, bin);
  }
  if (threadIdx.x == 32) {  // of another warp, at the same time
    s.last = bin == 0 ? kNotFinite : LeastRankOfBin(row, bin - 1) - 1;
  }
  __syncthreads();
  bool listed = false;
  while (true) {
    if (!listed && s.in_bin <= kListed) {
      ForRanks(row, s, false, [&](uint64_t rank) {
        s.list[atomicAdd(&s.listed, 1u)] = rank;
      });
      __syncthreads();
      listed = true;
    }
    uint64_t lowest = kNotFinite;
    uint64_t highest = 0;
    ForRanks(row, s, listed, [&](uint64_t rank) {
      lowest = min(lowest, rank);
      highest = max(highest, rank);
    });
    lowest = ~MaxOfBlock(~lowest);
    highest = MaxOfBlock(highest);
    const Mass better = s.better;
    if (lowest == highest) {
      return {lowest, better.weight + WeightAt(Distance(row, ValueOf(lowest)))};
    }
    const int shift = max(0, 64 - __clzll(lowest ^ highest) - kDigitBits);
    ClearBins(s);
    ForRanks(row, s, listed, [&](uint64_t rank) {
      AddToBin(s,
               static_cast<uint32_t>(rank >> shift) % kDigits,
               WeightAt(Distance(row, ValueOf(rank))));
    });
    __syncthreads();
    const uint32_t digit = kDigits - 1 - threadIdx.x;  // the best first
    FindBin(better, MassOfBin(s, digit), goal, digit, s);
    if (threadIdx.x == 0) {
      const uint64_t above = lowest >> shift & ~uint64_t{kDigits - 1};
      s.first = (above | s.bin) << shift;
      s.last = s.first + ((uint64_t{1} << shift) - 1);
    }
    __syncthreads();
  }
}

}  // namespace conclave::kernels::cuda
