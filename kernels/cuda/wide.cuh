// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/copy_async.cuh"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/product_args.cuh"

// Products with many rows: a block takes 8 tiles of weight rows by 128 rows of
// x; x goes through shared memory, weights from memory into registers, rounded
// to bf16 there.
namespace conclave::kernels::cuda {

inline constexpr int kWideRows = 128;  // of x
inline constexpr int kWideTiles = 8;   // of weights
inline constexpr int kWideWarps = 8;   // 4 along weights, 2 along rows
inline constexpr int kWideStages = 3;
inline constexpr int kRowBytes = kUnitCols * 2;  // of a unit
inline constexpr int kWideSharedBytes = kWideStages * kWideRows * kRowBytes;

// Where column `col` of a row lies for these products: as the tiles of weights
// have their columns (device_matrix.h), a lane's numbers of one step in the
// order of a fragment.
__host__ __device__ __forceinline__ int WidePlace(int col) {
  const int t = col % 32 / 8;
  const int i = col % 8;
  const int step = col % kUnitCols / 32 * 2 + i / 4;
  return col / kUnitCols * kUnitCols + step * 16 + i % 4 / 2 * 8 + 2 * t +
         i % 2;
}

// Chunk c of 16 bytes of a row lies at c ^ 4 (row mod 2): then eight lanes
// that read two rows meet no bank twice.
__device__ __forceinline__ int ChunkAt(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ ((row & 1) << 2)) << 4);
}

template <DeviceFormat F>
struct WideWeights {
  uint4 raw[2][kPieces<F>];
  uint2 scales[2][2];
};

template <DeviceFormat F>
__device__ __forceinline__ void LoadWeights(const ProductArgs& p,
                                            const RowGroup& group,
                                            int tile,
                                            int unit,
                                            int lane,
                                            WideWeights<F>* out) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = min(tile + r, p.m.tiles - 1);
    const uint8_t* from =
        group.data +
        (static_cast<int64_t>(row) * p.m.units + unit) * kUnitBytes<F> +
        lane * 16;
#pragma unroll
    for (int i = 0; i < kPieces<F>; ++i) {
      out->raw[r][i] =
          __ldg(reinterpret_cast<const uint4*>(from + i * kLanes * 16));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      out->scales[r][half] =
          LoadScales<F>(p.m, group.scales, row, 2 * unit + half, lane / 4);
    }
  }
}

template <DeviceFormat F>
__device__ __forceinline__ void MultiplyUnit(const ProductArgs& p,
                                             const WideWeights<F>& weights,
                                             const uint8_t* rows,
                                             int lane,
                                             float (&total)[2][8][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[2][2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowScales s = Scales<F>(weights.scales[r][half]);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        Decode<F>(weights.raw[r], 2 * half + step, s, a[r][step]);
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int row = n * 8 + lane / 4;
      const uint4 x = *reinterpret_cast<const uint4*>(
          rows + ChunkAt(row, half * 4 + lane % 4));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        MultiplyAdd(total[r][n], a[r][0], x.x, x.y);
        MultiplyAdd(total[r][n], a[r][1], x.z, x.w);
      }
    }
  }
}

template <DeviceFormat F, Use U>
__global__ void __launch_bounds__(kWideWarps* kLanes, 1)
    WideProduct(ProductArgs p) {
  extern __shared__ __align__(16) uint8_t shared[];
  WaitForKernelBefore();
  LetNextKernelBegin();
  // Neighbouring blocks share weights: they come from memory once.
  RowGroup group;
  const int index = U == Use::kDense ? blockIdx.x : blockIdx.y;
  if (!FindRows<U>(p, index, kWideRows, &group)) return;
  const int warp = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int tile =
      (U == Use::kDense ? blockIdx.y : blockIdx.x) * kWideTiles + warp % 4 * 2;
  const int row0 = warp / 4 * 64;
  // Each thread copies a quarter of two rows of every unit.
  const int mine = threadIdx.x / 2;
  const bool there = mine < group.count;
  const auto* from =
      static_cast<const __nv_bfloat16*>(p.x) +
      (there ? static_cast<int64_t>(RowOf<U>(p, group, mine)) * p.x_stride : 0);
  const auto fetch = [&](int unit) {
    uint8_t* to = shared + unit % kWideStages * kWideRows * kRowBytes;
    if (there && unit < p.m.units) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = threadIdx.x % 2 * 4 + i;
        CopyAsync16(to + ChunkAt(mine, chunk),
                    from + unit * kUnitCols + chunk * 8);
      }
    }
    CommitCopies();
  };
  for (int i = threadIdx.x; i < kWideSharedBytes / 16; i += blockDim.x) {
    reinterpret_cast<uint4*>(shared)[i] = {0, 0, 0, 0};
  }
  __syncthreads();
  for (int i = 0; i < kWideStages - 1; ++i) fetch(i);
  float total[2][8][4] = {};
  WideWeights<F> weights, next;
  LoadWeights<F>(p, group, tile, 0, lane, &weights);
  for (int unit = 0; unit < p.m.units; ++unit) {
    WaitForCopies<kWideStages - 2>();
    __syncthreads();
    fetch(unit + kWideStages - 1);
    if (unit + 1 < p.m.units) {
      LoadWeights<F>(p, group, tile, unit + 1, lane, &next);
    }
    MultiplyUnit<F>(
        p,
        weights,
        shared + (unit % kWideStages * kWideRows + row0) * kRowBytes,
        lane,
        total);
    weights = next;
  }
  const Places<2> places =
      U == Use::kGateUp ? Places<2>{} : PlacesAt<2>(p, tile);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int column = row0 + n * 8 + 2 * (lane % 4) + v % 2;
      if (column >= group.count || tile >= p.m.tiles) continue;
      const float sum[2] = {total[0][n][v], total[1][n][v]};
      Store<U, 2>(
          p, group.first + column, tile, lane / 4 + 8 * (v / 2), sum, places);
    }
  }
}

}  // namespace conclave::kernels::cuda
