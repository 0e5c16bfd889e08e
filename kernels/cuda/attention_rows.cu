// SPDX-License-Identifier: Apache-2.0
// Attention of rows that share nothing: a block takes one row of one KV head
// and a part of its context, and each of its warps every eighth chunk of that.
// A lane reads what only it needs, so shared memory is a private queue of
// loads and warps meet at the end only.
#include "common/status_macros.h"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda::attention {
namespace {

constexpr int kStagePieces = 8;
constexpr int kStages = 2 * kPieces / kStagePieces;  // of a chunk
constexpr int kStageBytes = kStagePieces * 32 * sizeof(uint4);
constexpr int kQueryBytes = kQueryPieces * sizeof(uint4);
// Stages of the queue: 20 of 24 KiB a warp are in flight. Two fit wherever a
// block may have 99 KiB.
constexpr int kRingLong = 6;
constexpr int kRingShort = 2;
// Half of the dims, and 8 floats so that the rows of a store differ in banks.
constexpr int kMergeDims = kHeadDim / 2;
constexpr int kMergeStride = kMergeDims + 8;
constexpr int kMergeBytes =
    kWarps * kGroupHeads * kMergeStride * static_cast<int>(sizeof(float));
static_assert(kMergeBytes <= kQueryBytes + kRingShort * kWarps * kStageBytes);

template <KvDType kType>
__device__ __forceinline__ void CopyStage(const LanePieces<kType>& from,
                                          int stage,
                                          uint4* to) {
#pragma unroll
  for (int i = 0; i < kStagePieces; ++i) {
    const int piece = stage * kStagePieces + i;
    if (piece < kPieces) {
      from.CopyKeys(piece, to + i * 32);
    } else {
      from.CopyValues(piece - kPieces, to + i * 32);
    }
  }
}

struct Unit {
  int32_t row = 0;
  int32_t kv_head = 0;
  int32_t split = 0;
  int32_t keys = 0;  // that the row sees
  Range chunks;
};

// This warp's chunks, each kWarps behind the one before.
template <KvDType kType, int kRing>
__device__ __forceinline__ void WalkKeys(const AttentionJob& job,
                                         const Unit& unit,
                                         uint4* shared,
                                         Sums* sums) {
  using Chunk = ChunkOf<kType>;
  constexpr int kAhead = kRing - 1;
  constexpr int kChunksPerBlock = kBlockTokens / Chunk::kKeys;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int32_t* blocks =
      job.step.kv_blocks +
      static_cast<size_t>(job.step.sequence_of[unit.row]) * job.step.kv_stride;
  const uint4* q = shared + lane;
  uint4* ring = shared + kQueryPieces + warp * kRing * kStagePieces * 32 + lane;
  const int32_t begin = unit.chunks.begin + warp;
  const int32_t end = unit.chunks.end;
  LanePieces<kType> load;
  int32_t block = 0;  // of the chunk that is loaded next
  if (begin < end) {
    load.Enter(
        job, blocks[begin / kChunksPerBlock], unit.kv_head, begin, unit.keys);
#pragma unroll
    for (int stage = 0; stage < kAhead; ++stage) {
      CopyStage(load, stage, ring + stage * kStagePieces * 32);
      CommitCopies();
    }
    if (begin + kWarps < end) {
      block = blocks[(begin + kWarps) / kChunksPerBlock];
    }
  }
  const size_t at = static_cast<size_t>(unit.row) * job.kv_heads + unit.kv_head;
  for (int i = threadIdx.x; i < kQueryPieces; i += kThreads) {
    shared[i] = QueryPiece(job, at, i);
  }
  __syncthreads();
  int slot = 0;  // of the stage that is read
  for (int32_t chunk = begin; chunk < end; chunk += kWarps) {
    const int32_t next = chunk + kWarps;
    Scores<kType> s = {};
    Probabilities<kType> p;
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      WaitForCopies<kAhead - 1>();
      const int ahead = stage + kAhead;
      if (ahead == kStages && next < end) {
        load.Enter(job, block, unit.kv_head, next, unit.keys);
        if (next + kWarps < end) {
          block = blocks[(next + kWarps) / kChunksPerBlock];
        }
      }
      if (ahead < kStages || next < end) {
        const int free = slot == 0 ? kRing - 1 : slot - 1;
        CopyStage(load, ahead % kStages, ring + free * kStagePieces * 32);
      }
      CommitCopies();
      const uint4* pieces = ring + slot * kStagePieces * 32;
      if (stage < kStages / 2) {
        AddKeys<kType, kStagePieces>(q, pieces, stage, s);
      } else {
        AddValues<kType, kStagePieces>(pieces, stage - kStages / 2, p, sums);
      }
      if (stage == kStages / 2 - 1) {
        Softmax<kType>(unit.keys - chunk * Chunk::kKeys, s, p, sums);
      }
      slot = slot == kRing - 1 ? 0 : slot + 1;
    }
  }
  WaitForCopies<0>();
}

// Largest score and sum of every warp and head.
using Stats = float[kWarps][kGroupHeads][2];

// Of a head over the first `warps` warps. Largest first.
__device__ __forceinline__ float2 MergeStats(const Stats& stats,
                                             int warps,
                                             int head) {
  float2 out = make_float2(-CUDART_INF_F, 0);
  for (int w = 0; w < warps; ++w) out.x = fmaxf(out.x, stats[w][head][0]);
  for (int w = 0; w < warps; ++w) {
    out.y += stats[w][head][1] * Exp2(stats[w][head][0] - out.x);
  }
  return out;
}

// Adds the warps' outputs; writes y, or a part for the kernel that combines.
__device__ __forceinline__ void MergeWarps(const AttentionJob& job,
                                           const Unit& unit,
                                           float* shared,
                                           Stats& stats,
                                           Sums* sums) {
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const int warps = min(kWarps, unit.chunks.end - unit.chunks.begin);
  sums->AddLanes();
  if (t == 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      stats[warp][g + 8 * r][0] = sums->largest[r];
      stats[warp][g + 8 * r][1] = sums->sum[r];
    }
  }
  __syncthreads();  // also: nobody reads queries or pieces any more
  const size_t part = PartialAt(job, unit.row, unit.kv_head, unit.split, 0);
  if (job.splits > 1 && threadIdx.x < job.ratio) {
    reinterpret_cast<float2*>(job.stats)[part + threadIdx.x] =
        MergeStats(stats, warps, threadIdx.x);
  }
  if (warps == 0) return;
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    factor[r] = Exp2(sums->largest[r] - MergeStats(stats, warps, g + 8 * r).x);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (warp < warps) {
      float* to = shared + (warp * kGroupHeads + g) * kMergeStride + 2 * t;
#pragma unroll
      for (int n = 0; n < kMergeDims / 8; ++n) {
        const float(&o)[4] = sums->o[half * (kMergeDims / 8) + n];
        *reinterpret_cast<float2*>(to + 8 * n) =
            make_float2(o[0] * factor[0], o[1] * factor[0]);
        *reinterpret_cast<float2*>(to + 8 * kMergeStride + 8 * n) =
            make_float2(o[2] * factor[1], o[3] * factor[1]);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < job.ratio * (kMergeDims / 2); i += kThreads) {
      const int head = i / (kMergeDims / 2);
      const int dim = i % (kMergeDims / 2) * 2;
      float2 sum = make_float2(0, 0);
      for (int w = 0; w < warps; ++w) {
        const float2 one = *reinterpret_cast<const float2*>(
            shared + (w * kGroupHeads + head) * kMergeStride + dim);
        sum.x += one.x;
        sum.y += one.y;
      }
      const int to = half * kMergeDims + dim;
      if (job.splits > 1) {
        *reinterpret_cast<float2*>(job.partial + (part + head) * kHeadDim +
                                   to) = sum;
      } else {
        const float whole = 1.0f / MergeStats(stats, warps, head).y;
        StoreGated(job,
                   unit.row,
                   unit.kv_head * job.ratio + head,
                   to,
                   make_float2(sum.x * whole, sum.y * whole));
      }
    }
    __syncthreads();
  }
}

template <KvDType kType, int kRing>
__global__ void __launch_bounds__(kThreads, 1)
    AttendRows(const __grid_constant__ AttentionJob job) {
  extern __shared__ uint4 shared[];
  __shared__ Stats stats;
  LetNextKernelBegin();
  WaitForKernelBefore();
  Unit unit;
  unit.kv_head = blockIdx.x % job.kv_heads;
  unit.row = blockIdx.x / job.kv_heads;
  unit.split = blockIdx.y;
  unit.keys = job.step.position[unit.row] + 1;
  unit.chunks =
      PartOf((unit.keys + ChunkOf<kType>::kKeys - 1) / ChunkOf<kType>::kKeys,
             unit.split,
             job.splits);
  Sums sums;
  sums.Clear();
  if (unit.chunks.begin < unit.chunks.end) {
    WalkKeys<kType, kRing>(job, unit, shared, &sums);
  }
  MergeWarps(job, unit, reinterpret_cast<float*>(shared), stats, &sums);
}

}  // namespace

absl::Status LaunchAttendRows(DeviceQueue* queue,
                              KvDType dtype,
                              const AttentionJob& job) {
  const auto shared_bytes = [](int ring) {
    return static_cast<size_t>(kQueryBytes + ring * kWarps * kStageBytes);
  };
  ASSIGN_OR_RETURN(const size_t shared_max, SharedBytesMax(*queue));
  // The statistics lie beside it.
  const bool long_ring = shared_bytes(kRingLong) + sizeof(Stats) <= shared_max;
  Grid grid;
  grid.blocks = dim3(job.step.rows * job.kv_heads, job.splits);
  grid.threads = dim3(kThreads);
  grid.shared_bytes = shared_bytes(long_ring ? kRingLong : kRingShort);
  constexpr auto kBF16 = KvDType::kBF16;
  constexpr auto kFp8 = KvDType::kFp8;
  void (*kernel)(AttentionJob) = nullptr;
  if (dtype == kBF16) {
    kernel = long_ring ? AttendRows<kBF16, kRingLong>
                       : AttendRows<kBF16, kRingShort>;
  } else {
    kernel =
        long_ring ? AttendRows<kFp8, kRingLong> : AttendRows<kFp8, kRingShort>;
  }
  return Launch(queue, "attention of rows", kernel, grid, job);
}

}  // namespace conclave::kernels::cuda::attention
