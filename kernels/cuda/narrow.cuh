// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/product_args.cuh"

// Products with few rows: every byte of the weights passes once from memory
// into a ring in shared memory and from there into tensor cores as the left
// operand; rows are the right one, up to 8 N of them. The warps of a block
// share R tiles of 16 weight rows and split their columns.
namespace conclave::kernels::cuda {

// Units of a warp that are on their way at a time: some 12 KiB.
constexpr int RingOf(int unit_bytes) {
  constexpr int kBytes = 12 << 10;
  return kBytes / unit_bytes < 2 ? 2 : kBytes / unit_bytes;
}

inline constexpr int kWarpsMax = 4;  // of a block
// Blocks of a multiprocessor, which their registers must leave room for.
template <int N>
inline constexpr int kBlocksOf = N == 1   ? 4
                                 : N == 2 ? 3
                                          : 2;

__device__ __forceinline__ void CopyAsync16(void* to, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile(
      "cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(address),
      "l"(from));
}
template <int Bytes>  // 4 or 8
__device__ __forceinline__ void CopyAsync(void* to, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address),
               "l"(from),
               "n"(Bytes));
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;");
}
template <int Pending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending));
}

// Sums of one group of columns, not yet scaled.
template <int R, int N>
struct Sums {
  float of[R][N][4];
  float rows[N][4];  // of x alone, the same in every weight row
};

// Bytes of the scales of one row pair (g, g + 8) and group; through the ring
// where a lane can copy them.
template <DeviceFormat F>
inline constexpr int kPairBytes = F == DeviceFormat::kGptq4 ? 4
                                  : kIsAffine<F>            ? 8
                                                            : 0;

template <int N>
struct RowPointers {
  const __nv_bfloat16* at[N];  // null: no such row
};

template <DeviceFormat F, int R, int N, bool WithLow>
struct Narrow {
  static constexpr int kWeightBytes = R * kUnitBytes<F>;
  static constexpr int kScaleBytes = R * 8 * kPairBytes<F>;  // of half a unit
  static constexpr int kSlotBytes = kWeightBytes + 2 * kScaleBytes;
  static constexpr int kStages = RingOf(kSlotBytes);

  static constexpr size_t SharedBytes(int warps) {
    const size_t ring = size_t(warps) * kStages * kSlotBytes;
    const size_t sums = size_t(warps) * R * N * 4 * kLanes * 4;
    return ring > sums ? ring : sums;
  }

  const ProductArgs& p;
  const uint8_t* from;    // this lane's piece of the first tile
  const uint8_t* scales;  // of the expert
  uint8_t* ring;          // the warp's first slot
  int tile;               // first of R
  int lane, g, t;
  float total[R][N][4] = {};

  __device__ __forceinline__ void Fetch(int unit, int stage) const {
    const int tile_bytes = p.m.units * kUnitBytes<F>;
    const uint8_t* piece = from + unit * kUnitBytes<F>;
    uint8_t* slot = ring + stage * kSlotBytes;
    uint8_t* to = slot + lane * 16;
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < kPieces<F>; ++i) {
        CopyAsync16(
            to + r * kUnitBytes<F> + i * kLanes * 16,
            piece + static_cast<int64_t>(r) * tile_bytes + i * kLanes * 16);
      }
    }
    if constexpr (kIsAffine<F>) {
      if (lane >= R * 8) return;
      const int64_t line =
          static_cast<int64_t>(tile + lane / 8) * p.m.scale_groups;
      const int halves = p.m.group_shift == 0 ? 2 : 1;
      for (int half = 0; half < halves; ++half) {
        const int64_t group = line + ((2 * unit + half) >> p.m.group_shift);
        CopyAsync<kPairBytes<F>>(
            slot + kWeightBytes + half * kScaleBytes + lane * kPairBytes<F>,
            scales + (group * 8 + lane % 8) * kPairBytes<F>);
      }
    }
  }

  // Of half a unit that has arrived; FP8: from memory.
  __device__ __forceinline__ RowScales ScalesOf(int stage,
                                                int unit,
                                                int half,
                                                int r) const {
    if constexpr (kIsAffine<F>) {
      const uint8_t* from = ring + stage * kSlotBytes + kWeightBytes +
                            half * kScaleBytes + (r * 8 + g) * kPairBytes<F>;
      if constexpr (F == DeviceFormat::kGptq4) {
        return Scales<F>({*reinterpret_cast<const uint32_t*>(from), 0});
      } else {
        return Scales<F>(*reinterpret_cast<const uint2*>(from));
      }
    } else {
      return Scales<F>(
          LoadScales<F>(p.m, scales, tile + r, 2 * unit + half, g));
    }
  }

  // Rows of x at the columns of a unit: 8 numbers per half.
  __device__ __forceinline__ void FetchRows(const RowPointers<N>& x,
                                            int unit,
                                            uint4 (&out)[N][2]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        out[n][half] = {0, 0, 0, 0};
        if (x.at[n] != nullptr) {
          out[n][half] = *reinterpret_cast<const uint4*>(
              x.at[n] + unit * kUnitCols + 32 * half + 8 * t);
        }
      }
    }
  }

  __device__ __forceinline__ void Scale(int stage,
                                        int unit,
                                        int half,
                                        const Sums<R, N>& sums) {
    // Codes came as 128 + q, those of 8 bits as two planes of that.
    constexpr float kOffset =
        F == DeviceFormat::kAffine8 ? 128.0f * 17.0f : 128.0f;
    constexpr float kUp = 1.152921504606846976e18f;  // 2^60, twice: 2^120
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const RowScales s = ScalesOf(stage, unit, half, r);
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const float scale = s.scale[v / 2];
          if constexpr (F == DeviceFormat::kFp8) {
            total[r][n][v] += sums.of[r][n][v] * kUp * (scale * kUp);
          } else {
            const float bias = fmaf(-kOffset, scale, s.bias[v / 2]);
            total[r][n][v] = fmaf(scale,
                                  sums.of[r][n][v],
                                  fmaf(bias, sums.rows[n][v], total[r][n][v]));
          }
        }
      }
    }
  }

  // The products of one step of 16 columns; `fresh` ones begin new sums.
  template <bool Fresh>
  __device__ __forceinline__ void Step(const uint4 (&raw)[R][kPieces<F>],
                                       int step,
                                       const uint4 (&x)[N][2],
                                       Sums<R, N>& sums) {
    constexpr uint32_t kOnes[4] = {
        0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint4 half = x[n][step / 2];
      const uint32_t b0 = step % 2 == 0 ? half.x : half.z;
      const uint32_t b1 = step % 2 == 0 ? half.y : half.w;
      if constexpr (kIsAffine<F>) {
        if constexpr (Fresh) {
          Multiply(sums.rows[n], kOnes, b0, b1);
        } else {
          MultiplyAdd(sums.rows[n], kOnes, b0, b1);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      uint32_t a[4], high[4];
      Fragments<F>(raw[r], step, 0, a);
      if constexpr (kPlanes<F> == 2) Fragments<F>(raw[r], step, 1, high);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint4 half = x[n][step / 2];
        const uint32_t b0 = step % 2 == 0 ? half.x : half.z;
        const uint32_t b1 = step % 2 == 0 ? half.y : half.w;
        if constexpr (F == DeviceFormat::kBf16) {
          MultiplyAdd(total[r][n], a, b0, b1);
        } else if constexpr (Fresh) {
          Multiply(sums.of[r][n], a, b0, b1);
        } else {
          MultiplyAdd(sums.of[r][n], a, b0, b1);
        }
        if constexpr (kPlanes<F> == 2) {
          float more[4];
          Multiply(more, high, b0, b1);
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            sums.of[r][n][v] = fmaf(16.0f, more[v], sums.of[r][n][v]);
          }
        }
      }
    }
  }

  // Starts the copies of the first units: nothing here depends on rows.
  __device__ __forceinline__ void Begin(int begin, int end) const {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (begin + i < end) Fetch(begin + i, i);
      CommitCopies();
    }
  }

  // All units of this warp.
  __device__ __forceinline__ void Run(int begin,
                                      int end,
                                      const RowPointers<N>& x,
                                      const RowPointers<N>& low) {
    const bool fine = kIsAffine<F> && p.m.group_shift == 0;
    uint4 rows[N][2], low_rows[N][2], next[N][2];
    FetchRows(x, begin, rows);
    Sums<R, N> sums = {};
    int stage = 0;
#pragma unroll 2
    for (int unit = begin; unit < end; ++unit) {
      const int ahead = unit + kStages - 1;
      if (ahead < end) Fetch(ahead, stage == 0 ? kStages - 1 : stage - 1);
      CommitCopies();
      // The last one reads what it has again.
      FetchRows(x, min(unit + 1, end - 1), next);
      if constexpr (WithLow) FetchRows(low, unit, low_rows);
      WaitForCopies<kStages - 1>();
      // Scales were copied by other lanes.
      __syncwarp();
      uint4 raw[R][kPieces<F>];
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < kPieces<F>; ++i) {
          raw[r][i] = *reinterpret_cast<const uint4*>(
              ring + stage * kSlotBytes + r * kUnitBytes<F> +
              (i * kLanes + lane) * 16);
        }
      }
      Step<true>(raw, 0, rows, sums);
      Step<false>(raw, 1, rows, sums);
      if constexpr (WithLow) {
        Step<false>(raw, 0, low_rows, sums);
        Step<false>(raw, 1, low_rows, sums);
      }
      if (fine) {
        Scale(stage, unit, 0, sums);
        Step<true>(raw, 2, rows, sums);
      } else {
        Step<false>(raw, 2, rows, sums);
      }
      Step<false>(raw, 3, rows, sums);
      if constexpr (WithLow) {
        Step<false>(raw, 2, low_rows, sums);
        Step<false>(raw, 3, low_rows, sums);
      }
      if constexpr (F != DeviceFormat::kBf16) {
        Scale(stage, unit, fine ? 1 : 0, sums);
      }
      // Nobody copies into this slot before all have read it.
      __syncwarp();
#pragma unroll
      for (int n = 0; n < N; ++n) {
        rows[n][0] = next[n][0];
        rows[n][1] = next[n][1];
      }
      if (++stage == kStages) stage = 0;
    }
    WaitForCopies<0>();
  }
};

// Adds up what the warps have, in their order, and writes it.
template <Use U, int R, int N>
__device__ __forceinline__ void Finish(const ProductArgs& p,
                                       const RowGroup& group,
                                       int tile,
                                       const float (&total)[R][N][4],
                                       float* shared) {
  const int warps = blockDim.x / kLanes;
  const int warp = threadIdx.x / kLanes;
  constexpr int kValues = N * 4 * kLanes;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        shared[(warp * R + r) * kValues + (n * 4 + v) * kLanes +
               threadIdx.x % kLanes] = total[r][n][v];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kValues; i += blockDim.x) {
    const int lane = i % kLanes;
    const int v = i / kLanes % 4;
    const int column = i / (4 * kLanes) * 8 + 2 * (lane % 4) + v % 2;
    const int row = lane / 4 + 8 * (v / 2);
    if (column >= group.count) continue;
    float sum[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      sum[r] = 0;
      for (int w = 0; w < warps; ++w) {
        sum[r] += shared[(w * R + r) * kValues + i];
      }
    }
    Store<U, R>(p, group.first + column, tile, row, sum);
  }
}

// A block takes R tiles by 8 N rows, plane blockIdx.z of gridDim.z of the
// columns.
template <DeviceFormat F, Use U, int R, int N, bool WithLow>
__global__ void __launch_bounds__(kWarpsMax* kLanes, kBlocksOf<N>)
    NarrowProduct(ProductArgs p) {
  extern __shared__ __align__(16) uint8_t shared[];
  using Work = Narrow<F, R, N, WithLow>;
  constexpr bool kDense = U == Use::kDense;
  const int warps = blockDim.x / kLanes;
  const int warp = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int tile = (kDense ? blockIdx.y : blockIdx.x) * R;
  if (kDense) LetNextKernelBegin();
  // Pairs are known to kDown: kGateUp waited for them before it let this one
  // begin.
  if (U == Use::kGateUp) WaitForKernelBefore();
  RowGroup group;
  if (!FindRows<U>(p, kDense ? blockIdx.x : blockIdx.y, 8 * N, &group)) return;
  const int part = blockIdx.z * warps + warp;
  const int parts = gridDim.z * warps;
  const int begin = p.m.units * part / parts;
  const int end = p.m.units * (part + 1) / parts;
  Work work{p,
            group.data +
                static_cast<int64_t>(tile) * p.m.units * kUnitBytes<F> +
                lane * 16,
            group.scales,
            shared + warp * Work::kStages * Work::kSlotBytes,
            tile,
            lane,
            lane / 4,
            lane % 4};
  work.Begin(begin, end);
  if (U != Use::kGateUp) WaitForKernelBefore();
  if (!kDense) LetNextKernelBegin();
  RowPointers<N> x, low;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int i = n * 8 + lane / 4;
    const bool there = i < group.count;
    const int64_t at =
        there ? static_cast<int64_t>(RowOf<U>(p, group, i)) * p.x_stride : 0;
    x.at[n] = there ? static_cast<const __nv_bfloat16*>(p.x) + at : nullptr;
    low.at[n] = there ? static_cast<const __nv_bfloat16*>(p.low) + at : nullptr;
  }
  work.Run(begin, end, x, low);
  Finish<U, R, N>(p, group, tile, work.total, reinterpret_cast<float*>(shared));
}

}  // namespace conclave::kernels::cuda
