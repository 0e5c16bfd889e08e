// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/product_args.cuh"

// Products with few rows: every byte of the weights passes once from memory
// into a ring in shared memory and from there into tensor cores as the left
// operand; rows are the right one, up to 8 N of them. The warps of a block
// share R tiles of 16 weight rows and split their columns.
namespace conclave::kernels::cuda {

// Units of a warp that are on their way at a time: some 12 KiB.
template <DeviceFormat F, int R>
inline constexpr int kRing =
    (12 << 10) / (kUnitBytes<F> * R)<2 ? 2 : (12 << 10) / (kUnitBytes<F> * R)> 8
        ? 8
        : (12 << 10) / (kUnitBytes<F> * R);

__device__ __forceinline__ void CopyAsync16(void* to, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile(
      "cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(address),
      "l"(from));
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

template <DeviceFormat F, int R, int N>
struct Narrow {
  static constexpr int kSlotBytes = R * kUnitBytes<F>;
  static constexpr int kStages = kRing<F, R>;

  static constexpr size_t SharedBytes(int warps) {
    const size_t ring = size_t(warps) * kStages * kSlotBytes;
    const size_t sums = size_t(warps) * R * N * 4 * kLanes * 4;
    return ring > sums ? ring : sums;
  }

  const ProductArgs& p;
  const RowGroup& group;
  uint8_t* ring;  // of this warp
  int tile;       // first of R
  int lane, g, t;
  float total[R][N][4] = {};

  __device__ __forceinline__ void Fetch(int unit, int stage) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      // The last block may have fewer tiles; its surplus reads the last one.
      const int64_t at =
          static_cast<int64_t>(min(tile + r, p.m.tiles - 1)) * p.m.units + unit;
      const uint8_t* from = group.data + at * kUnitBytes<F> + lane * 16;
      uint8_t* to = ring + stage * kSlotBytes + r * kUnitBytes<F> + lane * 16;
#pragma unroll
      for (int i = 0; i < kPieces<F>; ++i) {
        CopyAsync16(to + i * kLanes * 16, from + i * kLanes * 16);
      }
    }
  }

  __device__ __forceinline__ void FetchScales(int unit,
                                              uint2 (&raw)[R][2]) const {
    if constexpr (F == DeviceFormat::kBf16) return;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int row = min(tile + r, p.m.tiles - 1);
      const int first = unit * kUnitCols / p.m.group;
      raw[r][0] = LoadScales<F>(p.m, group.scales, row, first, g);
      if (p.m.group < kUnitCols) {
        raw[r][1] = LoadScales<F>(p.m, group.scales, row, first + 1, g);
      }
    }
  }

  // Rows of x at the columns of a unit: 8 numbers per half.
  __device__ __forceinline__ void FetchRows(const __nv_bfloat16* const (&x)[N],
                                            int unit,
                                            uint4 (&out)[N][2]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        out[n][half] = {0, 0, 0, 0};
        if (x[n] != nullptr) {
          out[n][half] = *reinterpret_cast<const uint4*>(
              x[n] + unit * kUnitCols + 32 * half + 8 * t);
        }
      }
    }
  }

  __device__ __forceinline__ void Scale(const RowScales (&s)[R],
                                        Sums<R, N>& sums) {
    // Codes came as 128 + q, those of 8 bits as two planes of that.
    constexpr float kOffset =
        F == DeviceFormat::kAffine8 ? 128.0f * 17.0f : 128.0f;
    constexpr float kUp = 1.152921504606846976e18f;  // 2^60, twice: 2^120
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const float scale = s[r].scale[v / 2];
          if constexpr (F == DeviceFormat::kFp8) {
            total[r][n][v] += sums.of[r][n][v] * kUp * (scale * kUp);
          } else {
            const float bias = s[r].bias[v / 2] - kOffset * scale;
            total[r][n][v] += scale * sums.of[r][n][v] + bias * sums.rows[n][v];
          }
          sums.of[r][n][v] = 0;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int v = 0; v < 4; ++v) sums.rows[n][v] = 0;
    }
  }

  // Adds the products of one unit with the rows in `x`.
  template <bool WithSums>
  __device__ __forceinline__ void Multiply(int stage,
                                           int half,
                                           const uint4 (&x)[N][2],
                                           float (&to)[R][N][4],
                                           Sums<R, N>& sums) const {
    constexpr uint32_t kOnes[4] = {
        0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      uint4 raw[kPieces<F>];
      const uint8_t* from =
          ring + stage * kSlotBytes + r * kUnitBytes<F> + lane * 16;
#pragma unroll
      for (int i = 0; i < kPieces<F>; ++i) {
        raw[i] = *reinterpret_cast<const uint4*>(from + i * kLanes * 16);
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const int step = 2 * half + s;
#pragma unroll
        for (int plane = kPlanes<F> - 1; plane >= 0; --plane) {
          uint32_t a[4];
          Fragments<F>(raw, step, plane, a);
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const uint32_t b0 = s == 0 ? x[n][half].x : x[n][half].z;
            const uint32_t b1 = s == 0 ? x[n][half].y : x[n][half].w;
            if (kPlanes<F> == 2 && plane == 1) {
              float high[4] = {};
              MultiplyAdd(high, a, b0, b1);
#pragma unroll
              for (int v = 0; v < 4; ++v) to[r][n][v] += 16.0f * high[v];
            } else {
              MultiplyAdd(to[r][n], a, b0, b1);
            }
            if (WithSums && r == 0 && plane == 0) {
              MultiplyAdd(sums.rows[n], kOnes, b0, b1);
            }
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

  __device__ __forceinline__ void Half(int stage,
                                       int half,
                                       const uint4 (&x)[N][2],
                                       Sums<R, N>& sums) {
    if constexpr (F == DeviceFormat::kBf16) {
      Multiply<false>(stage, half, x, total, sums);
    } else {
      Multiply<kIsAffine<F>>(stage, half, x, sums.of, sums);
    }
  }

  // All units of this warp. `low` may hold null pointers.
  __device__ __forceinline__ void Run(int begin,
                                      int end,
                                      const __nv_bfloat16* const (&x)[N],
                                      const __nv_bfloat16* const (&low)[N],
                                      bool with_low) {
    uint2 scales[R][2], next[R][2];
    uint4 rows[N][2], low_rows[N][2];
    if (begin < end) FetchScales(begin, scales);
    Sums<R, N> sums = {};
    int stage = 0;
    for (int unit = begin; unit < end; ++unit) {
      const int ahead = unit + kStages - 1;
      if (ahead < end) Fetch(ahead, stage == 0 ? kStages - 1 : stage - 1);
      CommitCopies();
      FetchRows(x, unit, rows);
      if (with_low) FetchRows(low, unit, low_rows);
      if (unit + 1 < end) FetchScales(unit + 1, next);
      WaitForCopies<kStages - 1>();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Half(stage, half, rows, sums);
        if (with_low) Half(stage, half, low_rows, sums);
        if constexpr (F != DeviceFormat::kBf16) {
          const bool fine = p.m.group < kUnitCols;
          if (!fine && half == 0) continue;
          RowScales s[R];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            s[r] =
                Scales<F>(p.m, fine && half == 1 ? scales[r][1] : scales[r][0]);
          }
          Scale(s, sums);
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        scales[r][0] = next[r][0];
        scales[r][1] = next[r][1];
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

template <DeviceFormat F, Use U, int R, int N>
__global__ void NarrowProduct(ProductArgs p) {
  extern __shared__ __align__(16) uint8_t shared[];
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
  const int begin = p.m.units * warp / warps;
  const int end = p.m.units * (warp + 1) / warps;
  Narrow<F, R, N> work{
      p,
      group,
      shared + warp * Narrow<F, R, N>::kStages * Narrow<F, R, N>::kSlotBytes,
      tile,
      lane,
      lane / 4,
      lane % 4};
  work.Begin(begin, end);
  if (U != Use::kGateUp) WaitForKernelBefore();
  if (!kDense) LetNextKernelBegin();
  const __nv_bfloat16* x[N];
  const __nv_bfloat16* low[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int i = n * 8 + lane / 4;
    const bool there = i < group.count;
    const int64_t at =
        there ? static_cast<int64_t>(RowOf<U>(p, group, i)) * p.x_stride : 0;
    x[n] = there ? static_cast<const __nv_bfloat16*>(p.x) + at : nullptr;
    low[n] = there && p.low != nullptr
                 ? static_cast<const __nv_bfloat16*>(p.low) + at
                 : nullptr;
  }
  work.Run(begin, end, x, low, kDense && p.low != nullptr);
  Finish<U, R, N>(p, group, tile, work.total, reinterpret_cast<float*>(shared));
}

}  // namespace conclave::kernels::cuda
