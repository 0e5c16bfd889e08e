// SPDX-License-Identifier: Apache-2.0
// What one warp does with a chunk of keys and values: 16 query heads are the
// rows of mma.m16n8k16. With g = lane / 4 and t = lane % 4, column n = 2 t + c
// of tile j of the scores is key kWide * t + 2 j + c of the chunk, so that
// the accumulators of the scores are the first operand of the product with the
// values, and lane t reads kWide neighbouring keys of a dim.
#pragma once

#include <math_constants.h>

#include "kernels/cuda/attention_job.cuh"

namespace conclave::kernels::cuda::attention {

// Pieces are 16 bytes per lane. A chunk is 32 pieces of keys, in the order
// [dims / (4 kWide), tiles], and 32 of values, each 8 dims.
constexpr int kPieces = 32;
constexpr int kQuerySteps = kHeadDim / 16;
constexpr int kQueryPieces = kQuerySteps * 32;  // of all lanes

template <KvDType kType>
struct ChunkOf {
  static constexpr int kWide = KvOf<kType>::kWide;
  static constexpr int kKeys = 4 * kWide;
  static constexpr int kTiles = kKeys / 8;
  static constexpr int kSteps = kWide / 4;  // of the contraction in a piece
  static constexpr int kElementBytes = 16 / kWide;
};

// Rows g and g + 8: unnormalised outputs (dims 8 n + 2 t, + 1), the largest
// score so far (base 2) and this lane's part of the sum.
struct Sums {
  float o[kHeadDim / 8][4];
  float largest[2];
  float sum[2];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (auto& tile : o) {
      tile[0] = tile[1] = tile[2] = tile[3] = 0;
    }
    largest[0] = largest[1] = -CUDART_INF_F;
    sum[0] = sum[1] = 0;
  }
  __device__ __forceinline__ void AddLanes() {
#pragma unroll
    for (float& x : sum) {
      x += __shfl_xor_sync(0xffffffffu, x, 1);
      x += __shfl_xor_sync(0xffffffffu, x, 2);
    }
  }
};

// Bytes beyond `bytes` become zeros.
__device__ __forceinline__ void CopyAsync(uint4* to,
                                          const char* from,
                                          int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Where a lane's pieces of a chunk lie in the cache. Keys from `keys` on are
// not read: pieces have zeros there.
template <KvDType kType>
struct LanePieces {
  using Chunk = ChunkOf<kType>;
  const char* k = nullptr;
  const char* v = nullptr;
  int left = 0;  // keys before `keys`, from this lane's first key
  int value_bytes = 0;

  __device__ __forceinline__ void Enter(const AttentionJob& job,
                                        int32_t block,
                                        int32_t kv_head,
                                        int32_t chunk,
                                        int32_t keys) {
    const int lane = threadIdx.x % 32;
    const int g = lane / 4;
    const int t = lane % 4;
    const int first = chunk * Chunk::kKeys % kBlockTokens;
    const int valid = keys - chunk * Chunk::kKeys;
    const int key = Chunk::kWide * (g / 2) + g % 2;
    const char* keys_of = KeysOf<kType>(job, block, kv_head);
    k = keys_of + (first + key) * kHeadDim * Chunk::kElementBytes + 16 * t;
    v = keys_of + job.kv_heads * HeadBytes<kType>() +
        (g * kBlockTokens + first) * Chunk::kElementBytes + 16 * t;
    left = valid - key;
    value_bytes =
        max(0, min(16, (valid - Chunk::kWide * t) * Chunk::kElementBytes));
  }
  __device__ __forceinline__ void CopyKeys(int piece, uint4* to) const {
    const int tile = piece % Chunk::kTiles;
    CopyAsync(to,
              k + 2 * tile * kHeadDim * Chunk::kElementBytes +
                  piece / Chunk::kTiles * 64,
              2 * tile < left ? 16 : 0);
  }
  __device__ __forceinline__ void CopyValues(int piece, uint4* to) const {
    CopyAsync(
        to, v + 8 * piece * kBlockTokens * Chunk::kElementBytes, value_bytes);
  }
};

template <KvDType kType>
__device__ __forceinline__ void Multiply(float (&c)[4],
                                         const uint32_t (&a)[4],
                                         uint32_t b0,
                                         uint32_t b1) {
  if constexpr (kType == KvDType::kBF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The second operands that a piece holds.
template <KvDType kType>
__device__ __forceinline__ void Unpack(
    const uint4& piece, uint32_t (&b)[2 * ChunkOf<kType>::kSteps]) {
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kType == KvDType::kBF16) {
      b[i] = words[i];
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const __half2_raw two = __nv_cvt_fp8x2_to_halfraw2(
            static_cast<__nv_fp8x2_storage_t>(words[i] >> (16 * half)),
            __NV_E4M3);
        b[2 * i + half] = two.x | (static_cast<uint32_t>(two.y) << 16);
      }
    }
  }
}

}  // namespace conclave::kernels::cuda::attention
