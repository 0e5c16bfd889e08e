// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/warpgroup.cuh"

// Products with many rows on Hopper: warpgroup products (wgmma), whose left
// operand comes from registers, where weights are decoded, and whose right one,
// 128 rows of x, from shared memory. A block takes 8 tiles of weight rows, a
// warp one. The rows have the order of WidePlace.
namespace conclave::kernels::cuda {

inline constexpr int kHopperStages = 4;
inline constexpr int kHopperThreads = 256;
inline constexpr size_t kHopperSharedBytes =
    kHopperStages * kWideRows * kRowBytes + kSwizzleBytes;

template <DeviceFormat F, Use U>
struct Hopper {
  const ProductArgs& p;
  const RowGroup& group;
  uint8_t* stages;
  int tile;  // of this warp
  int lane;

  // A unit of this warp's tile, as it lies in memory.
  struct Raw {
    uint4 codes[kPieces<F>];
    uint2 scales[2];
  };

  __device__ __forceinline__ void Load(int unit, Raw* raw) const {
    const int row = min(tile, p.m.tiles - 1);
    const uint8_t* from =
        group.data +
        (static_cast<int64_t>(row) * p.m.units + unit) * kUnitBytes<F> +
        lane * 16;
#pragma unroll
    for (int i = 0; i < kPieces<F>; ++i) {
      raw->codes[i] =
          __ldg(reinterpret_cast<const uint4*>(from + i * kLanes * 16));
    }
    if constexpr (F != DeviceFormat::kBf16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        raw->scales[half] =
            LoadScales<F>(p.m, group.scales, row, 2 * unit + half, lane / 4);
      }
    }
  }

  __device__ __forceinline__ void DecodeUnit(const Raw& raw,
                                             uint32_t (&a)[kSteps][4]) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Decode<F>(raw.codes, step, Scales<F>(raw.scales[step / 2]), a[step]);
    }
  }

  // Each thread copies half a row of every unit.
  __device__ __forceinline__ void Fetch(const __nv_bfloat16* from,
                                        int unit) const {
    if (from != nullptr && unit < p.m.units) {
      const int row = static_cast<int>(threadIdx.x) / 2;
      uint8_t* to =
          stages + (unit % kHopperStages * kWideRows + row) * kRowBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = static_cast<int>(threadIdx.x) % 2 * 4 + i;
        CopyAsync16(to + ((chunk ^ (row & 7)) << 4),
                    from + unit * kUnitCols + chunk * 8);
      }
    }
    CommitCopies();
  }

  // One unit: what tensor cores still do of the one before, they may finish.
  __device__ __forceinline__ void Multiply(const __nv_bfloat16* from,
                                           int unit,
                                           Raw* raw,
                                           uint32_t (&a)[kSteps][4],
                                           float (&total)[kSumsOfAThread]) {
    WaitForCopies<1>();
    ShowToTensorCores();
    __syncthreads();
    Fetch(from, unit + 2);
    DecodeUnit(*raw, a);
    if (unit + 1 < p.m.units) Load(unit + 1, raw);
    const uint64_t b =
        DescriptorOf(stages + unit % kHopperStages * kWideRows * kRowBytes);
    GroupFence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      constexpr int kStepBytes = 32;
      GroupMultiplyAdd(total, a[step], b + (step * kStepBytes >> 4));
    }
    GroupCommit();
    GroupWait<1>();
  }

  // Gate and up are neighbouring warps': they meet in shared memory.
  __device__ __forceinline__ void StoreGateUp(
      const float (&total)[kSumsOfAThread]) const {
    auto* up =
        reinterpret_cast<float*>(stages) +
        static_cast<int>(threadIdx.x) / (2 * kLanes) * kSumsOfAThread * kLanes +
        lane;
    __syncthreads();
    if (tile % 2 == 1) {
#pragma unroll
      for (int i = 0; i < kSumsOfAThread; ++i) up[i * kLanes] = total[i];
    }
    __syncthreads();
    if (tile % 2 == 1 || tile >= p.m.tiles) return;
#pragma unroll
    for (int i = 0; i < kSumsOfAThread; ++i) {
      const int column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
      if (column >= group.count) continue;
      const int col = tile / 2 * kTileRows + lane / 4 + i % 4 / 2 * 8;
      static_cast<__nv_bfloat16*>(
          p.out)[static_cast<int64_t>(group.first + column) * p.out_stride +
                 WidePlace(col)] =
          __float2bfloat16(SiluTimes(total[i], up[i * kLanes]));
    }
  }

  __device__ __forceinline__ void StoreRows(
      const float (&total)[kSumsOfAThread]) const {
    if (tile >= p.m.tiles) return;
    const int2 place = p.m.places[tile];
#pragma unroll
    for (int i = 0; i < kSumsOfAThread; ++i) {
      const int column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
      const int row = lane / 4 + i % 4 / 2 * 8;
      if (column >= group.count || row >= place.y) continue;
      static_cast<float*>(
          p.out)[static_cast<int64_t>(group.first + column) * p.out_stride +
                 place.x + row] = total[i];
    }
  }
};

template <DeviceFormat F, Use U>
__global__ void __launch_bounds__(kHopperThreads, 2)
    HopperProduct(ProductArgs p) {
  extern __shared__ __align__(16) uint8_t shared[];
  WaitForKernelBefore();
  LetNextKernelBegin();
  RowGroup group;
  const int index = U == Use::kDense ? blockIdx.x : blockIdx.y;
  if (!FindRows<U>(p, index, kWideRows, &group)) return;
  const int warp = threadIdx.x / kLanes;
  const int tile =
      (U == Use::kDense ? blockIdx.y : blockIdx.x) * kWideTiles + warp;
  const auto start = reinterpret_cast<uintptr_t>(shared);
  Hopper<F, U> work{
      p,
      group,
      shared +
          ((start + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes - start),
      tile,
      static_cast<int>(threadIdx.x) % kLanes};
  const int mine = threadIdx.x / 2;
  const __nv_bfloat16* from =
      mine < group.count
          ? static_cast<const __nv_bfloat16*>(p.x) +
                static_cast<int64_t>(RowOf<U>(p, group, mine)) * p.x_stride
          : nullptr;
  // Rows that are not there stay zero.
  for (int i = threadIdx.x; i < kHopperStages * kWideRows * kRowBytes / 16;
       i += blockDim.x) {
    reinterpret_cast<uint4*>(work.stages)[i] = {0, 0, 0, 0};
  }
  __syncthreads();
  work.Fetch(from, 0);
  work.Fetch(from, 1);
  float total[kSumsOfAThread] = {};
  uint32_t a[2][kSteps][4];
  typename Hopper<F, U>::Raw raw;
  work.Load(0, &raw);
  int unit = 0;
  for (; unit + 1 < p.m.units; unit += 2) {
    work.Multiply(from, unit, &raw, a[0], total);
    work.Multiply(from, unit + 1, &raw, a[1], total);
  }
  if (unit < p.m.units) work.Multiply(from, unit, &raw, a[0], total);
  GroupWait<0>();
  if constexpr (U == Use::kGateUp) {
    work.StoreGateUp(total);
  } else {
    work.StoreRows(total);
  }
}

}  // namespace conclave::kernels::cuda
