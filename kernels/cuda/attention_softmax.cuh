// SPDX-License-Identifier: Apache-2.0
// Products of one warp and the running softmax between them.
#pragma once

#include "kernels/cuda/attention_warp.cuh"

namespace conclave::kernels::cuda::attention {

template <KvDType kType>
using Scores = float[ChunkOf<kType>::kTiles][4];
template <KvDType kType>
using Probabilities = uint32_t[ChunkOf<kType>::kSteps][4];

// Adds kCount pieces of keys, from piece kCount * part on. q and pieces are
// shared memory at this lane; pieces are 32 apart.
template <KvDType kType, int kCount>
__device__ __forceinline__ void AddKeys(const uint4* q,
                                        const uint4* pieces,
                                        int part,
                                        Scores<kType>& s) {
  using Chunk = ChunkOf<kType>;
  constexpr int kGroups = kCount / Chunk::kTiles;
#pragma unroll 2
  for (int group = 0; group < kGroups; ++group) {
    uint32_t a[Chunk::kSteps][4];
#pragma unroll
    for (int step = 0; step < Chunk::kSteps; ++step) {
      const uint4 four =
          q[((part * kGroups + group) * Chunk::kSteps + step) * 32];
      a[step][0] = four.x;
      a[step][1] = four.y;
      a[step][2] = four.z;
      a[step][3] = four.w;
    }
#pragma unroll
    for (int tile = 0; tile < Chunk::kTiles; ++tile) {
      uint32_t b[2 * Chunk::kSteps];
      Unpack<kType>(pieces[(group * Chunk::kTiles + tile) * 32], b);
#pragma unroll
      for (int step = 0; step < Chunk::kSteps; ++step) {
        Multiply<kType>(s[tile], a[step], b[2 * step], b[2 * step + 1]);
      }
    }
  }
}

// Adds kCount pieces of values, from dim 8 * kCount * part on.
template <KvDType kType, int kCount>
__device__ __forceinline__ void AddValues(const uint4* pieces,
                                          int part,
                                          const Probabilities<kType>& p,
                                          Sums* sums) {
  using Chunk = ChunkOf<kType>;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    uint32_t b[2 * Chunk::kSteps];
    Unpack<kType>(pieces[i * 32], b);
#pragma unroll
    for (int step = 0; step < Chunk::kSteps; ++step) {
      Multiply<kType>(
          sums->o[part * kCount + i], p[step], b[2 * step], b[2 * step + 1]);
    }
  }
}

// Turns the scores of a chunk, of which the first `valid` >= 1 keys count,
// into probabilities relative to the largest score so far.
template <KvDType kType>
__device__ __forceinline__ void Softmax(int32_t valid,
                                        Scores<kType>& s,
                                        Probabilities<kType>& p,
                                        Sums* sums) {
  using Chunk = ChunkOf<kType>;
  if (valid < Chunk::kKeys) {
    const int first = threadIdx.x % 4 * Chunk::kWide;
#pragma unroll
    for (int tile = 0; tile < Chunk::kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + 2 * tile + i % 2 >= valid) s[tile][i] = -CUDART_INF_F;
      }
    }
  }
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = sums->largest[r];
#pragma unroll
    for (int tile = 0; tile < Chunk::kTiles; ++tile) {
      largest = fmaxf(largest, fmaxf(s[tile][2 * r], s[tile][2 * r + 1]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    factor[r] = Exp2(sums->largest[r] - largest);
    sums->largest[r] = largest;
    float sum = 0;
#pragma unroll
    for (int tile = 0; tile < Chunk::kTiles; ++tile) {
      const float low = Exp2(s[tile][2 * r] - largest);
      const float high = Exp2(s[tile][2 * r + 1] - largest);
      sum += low + high;
      p[tile / 2][2 * (tile % 2) + r] = Pack<kType>(low, high);
    }
    sums->sum[r] = sums->sum[r] * factor[r] + sum;
  }
  // Multiplying by one changes no bit: most chunks have no new maximum.
  if (__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
    for (auto& tile : sums->o) {
      tile[0] *= factor[0];
      tile[1] *= factor[0];
      tile[2] *= factor[1];
      tile[3] *= factor[1];
    }
  }
}

// The lane's part of a query: zeros for heads that the group does not have.
__device__ __forceinline__ uint4 QueryPiece(const AttentionJob& job,
                                            size_t unit,
                                            int piece) {
  uint4 four = static_cast<const uint4*>(job.q)[unit * kQueryPieces + piece];
  const int g = piece % 32 / 4;
  if (g >= job.ratio) four.x = four.z = 0;
  if (g + 8 >= job.ratio) four.y = four.w = 0;
  return four;
}

}  // namespace conclave::kernels::cuda::attention
