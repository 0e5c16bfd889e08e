// SPDX-License-Identifier: Apache-2.0
// Attention of prompts: a block takes up to eight rows of one sequence and one
// KV head, a warp each. The warps walk the same keys together, so that these
// come once through a queue of loads that the block shares.
#include "common/status_macros.h"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda::attention {
namespace {

// A stage is the keys or the values of a chunk. Three of 16 KiB in flight
// cover the latency of memory behind the products of one; beside 64 KiB of
// queries two fit wherever a block may have 99 KiB.
constexpr int kRingLong = 4;
constexpr int kRingShort = 2;
constexpr int kStagePieces = kPieces;
constexpr int kStageBytes = kStagePieces * 32 * sizeof(uint4);
constexpr int kQueryBytes = kTileRows * kQueryPieces * sizeof(uint4);
constexpr int kPiecesPerWarp = kStagePieces / kWarps;

struct Tile {
  int32_t sequence = 0;
  int32_t row = 0;   // its first
  int32_t rows = 0;  // 0: there is no such tile
};

// Tile `index` in the order of rows. All lanes of a warp call it.
__device__ __forceinline__ Tile FindTile(const DeviceStep& step,
                                         int32_t index) {
  const int lane = threadIdx.x % 32;
  int32_t before = 0;  // tiles of the sequences before `first`
  for (int32_t first = 0; first < step.sequences; first += 32) {
    const int32_t s = first + lane;
    int32_t begin = 0;
    int32_t end = 0;
    if (s < step.sequences) {
      begin = step.row_begin[s];
      end = step.row_begin[s + 1];
    }
    const int32_t own = (end - begin + kTileRows - 1) / kTileRows;
    int32_t sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int32_t other = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += other;
    }
    const unsigned found = __ballot_sync(0xffffffffu, before + sum > index);
    if (found != 0) {
      const int from = __ffs(found) - 1;
      const int32_t row = begin + (index - before - sum + own) * kTileRows;
      Tile tile;
      tile.sequence = first + from;
      tile.row = __shfl_sync(0xffffffffu, row, from);
      tile.rows =
          min(kTileRows, __shfl_sync(0xffffffffu, end, from) - tile.row);
      return tile;
    }
    before += __shfl_sync(0xffffffffu, sum, 31);
  }
  return {};
}

// The warp's share of a stage.
template <KvDType kType>
__device__ __forceinline__ void CopyShare(const LanePieces<kType>& from,
                                          bool values,
                                          uint4* to) {
#pragma unroll
  for (int i = 0; i < kPiecesPerWarp; ++i) {
    const int piece = threadIdx.x / 32 * kPiecesPerWarp + i;
    if (values) {
      from.CopyValues(piece, to + piece * 32);
    } else {
      from.CopyKeys(piece, to + piece * 32);
    }
  }
}

// A warp without a row has own_keys 0. `keys` are those that the last row of
// the tile sees: the cache has no block beyond.
template <KvDType kType, int kRing>
__device__ __forceinline__ void WalkKeys(const AttentionJob& job,
                                         const Tile& tile,
                                         int32_t kv_head,
                                         Range chunks,
                                         int32_t keys,
                                         int32_t own_keys,
                                         uint4* shared,
                                         Sums* sums) {
  using Chunk = ChunkOf<kType>;
  constexpr int kAhead = kRing - 1;
  constexpr int kChunksPerBlock = kBlockTokens / Chunk::kKeys;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int32_t* blocks =
      job.step.kv_blocks +
      static_cast<size_t>(tile.sequence) * job.step.kv_stride;
  uint4* q = shared + warp * kQueryPieces + lane;
  uint4* ring = shared + kTileRows * kQueryPieces + lane;
  LanePieces<kType> load;
  // Values follow their keys, so that these enter the chunk for both.
  const auto copy = [&](int32_t chunk, bool values, int slot) {
    if (chunk < chunks.end) {
      if (!values) {
        load.Enter(job, blocks[chunk / kChunksPerBlock], kv_head, chunk, keys);
      }
      CopyShare(load, values, ring + slot * kStagePieces * 32);
    }
    CommitCopies();
  };
#pragma unroll
  for (int stage = 0; stage < kAhead; ++stage) {
    copy(chunks.begin + stage / 2, stage % 2 != 0, stage);
  }
  if (own_keys > 0) {
    const size_t unit =
        static_cast<size_t>(tile.row + warp) * job.kv_heads + kv_head;
#pragma unroll
    for (int step = 0; step < kQuerySteps; ++step) {
      q[step * 32] = QueryPiece(job, unit, step * 32 + lane);
    }
  }
  int slot = 0;  // of the stage that is read
  for (int32_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
    const int32_t valid = own_keys - chunk * Chunk::kKeys;
    Probabilities<kType> p;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      WaitForCopies<kAhead - 1>();
      __syncthreads();  // every warp's share came, the stage before is read
      copy(chunk + (half + kAhead) / 2,
           (half + kAhead) % 2 != 0,
           slot == 0 ? kRing - 1 : slot - 1);
      const uint4* pieces = ring + slot * kStagePieces * 32;
      if (valid > 0 && half == 0) {
        Scores<kType> s = {};
        AddKeys<kType, kStagePieces>(q, pieces, 0, s);
        Softmax<kType>(valid, s, p, sums);
      } else if (valid > 0) {
        AddValues<kType, kStagePieces>(pieces, 0, p, sums);
      }
      slot = slot == kRing - 1 ? 0 : slot + 1;
    }
  }
  WaitForCopies<0>();
}

// y, or a part for the kernel that combines.
__device__ __forceinline__ void WriteRow(const AttentionJob& job,
                                         int32_t row,
                                         int32_t kv_head,
                                         int32_t split,
                                         Sums* sums) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  sums->AddLanes();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int head = g + 8 * r;
    if (head >= job.ratio) break;
    if (job.splits > 1) {
      const size_t part = PartialAt(job, row, kv_head, split, head);
      if (t == 0) {
        reinterpret_cast<float2*>(job.stats)[part] =
            make_float2(sums->largest[r], sums->sum[r]);
      }
      if (sums->sum[r] == 0) continue;  // the part has no key
      float* to = job.partial + part * kHeadDim + 2 * t;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(to + 8 * n) =
            make_float2(sums->o[n][2 * r], sums->o[n][2 * r + 1]);
      }
    } else {
      const float whole = 1.0f / sums->sum[r];
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        StoreGated(job,
                   row,
                   kv_head * job.ratio + head,
                   8 * n + 2 * t,
                   make_float2(sums->o[n][2 * r] * whole,
                               sums->o[n][2 * r + 1] * whole));
      }
    }
  }
}

template <KvDType kType, int kRing>
__global__ void __launch_bounds__(kThreads, 1)
    AttendTiles(const __grid_constant__ AttentionJob job) {
  extern __shared__ uint4 shared[];
  using Chunk = ChunkOf<kType>;
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int warp = threadIdx.x / 32;
  const int32_t kv_head = blockIdx.x % job.kv_heads;
  // The last rows see most and begin first.
  const int32_t index = (gridDim.x - 1 - blockIdx.x) / job.kv_heads;
  const Tile tile = FindTile(job.step, index);
  if (tile.rows == 0) return;
  const int32_t row = tile.row + warp;
  const int32_t first = job.step.position[tile.row];
  const int32_t keys = first + tile.rows;
  const int32_t own_keys = warp < tile.rows ? first + warp + 1 : 0;
  // As if the tile were full: a row's part does not depend on rows behind it.
  Range chunks = PartOf((first + kTileRows + Chunk::kKeys - 1) / Chunk::kKeys,
                        blockIdx.y,
                        job.splits);
  chunks.end = min(chunks.end, (keys + Chunk::kKeys - 1) / Chunk::kKeys);
  Sums sums;
  sums.Clear();
  WalkKeys<kType, kRing>(
      job, tile, kv_head, chunks, keys, own_keys, shared, &sums);
  if (own_keys > 0) WriteRow(job, row, kv_head, blockIdx.y, &sums);
}

}  // namespace

absl::Status LaunchAttendTiles(DeviceQueue* queue,
                               KvDType dtype,
                               const AttentionJob& job) {
  const auto shared_bytes = [](int ring) {
    return static_cast<size_t>(kQueryBytes + ring * kStageBytes);
  };
  ASSIGN_OR_RETURN(const size_t shared_max, SharedBytesMax(*queue));
  const bool long_ring = shared_bytes(kRingLong) <= shared_max;
  Grid grid;
  grid.blocks = dim3(TilesMax(job.step) * job.kv_heads, job.splits);
  grid.threads = dim3(kThreads);
  grid.shared_bytes = shared_bytes(long_ring ? kRingLong : kRingShort);
  constexpr auto kBF16 = KvDType::kBF16;
  constexpr auto kFp8 = KvDType::kFp8;
  void (*kernel)(AttentionJob) = nullptr;
  if (dtype == kBF16) {
    kernel = long_ring ? AttendTiles<kBF16, kRingLong>
                       : AttendTiles<kBF16, kRingShort>;
  } else {
    kernel = long_ring ? AttendTiles<kFp8, kRingLong>
                       : AttendTiles<kFp8, kRingShort>;
  }
  return Launch(queue, "attention of a prompt", kernel, grid, job);
}

}  // namespace conclave::kernels::cuda::attention
