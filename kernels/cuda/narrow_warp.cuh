// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/weight_ring.cuh"

// What one warp does of a product of few rows: R tiles of weight rows by 8 N
// rows of x, some units of the columns.
namespace conclave::kernels::cuda {

// Sums of one group of columns, not yet scaled.
template <int R, int N>
struct Sums {
  float of[R][N][4];
  float rows[N][4];  // of x alone, the same in every weight row
};

template <int N>
struct RowPointers {
  const __nv_bfloat16* at[N];  // null: no such row
};

template <DeviceFormat F, int R, int N, bool WithLow>
struct Narrow {
  using Ring = WeightRing<F, R>;
  static constexpr int kStages = Ring::kStages;

  static constexpr size_t SharedBytes(int warps) {
    const size_t ring = size_t(warps) * kStages * Ring::kSlotBytes;
    const size_t sums = size_t(warps) * R * N * 4 * kLanes * 4;
    return ring > sums ? ring : sums;
  }

  const Ring& ring;
  float total[R][N][4] = {};

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
              x.at[n] + unit * kUnitCols + 32 * half + 8 * (ring.lane % 4));
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
      const RowScales s = ring.ScalesOf(stage, unit, half, r);
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

  // All units of this warp.
  __device__ __forceinline__ void Run(int begin,
                                      int end,
                                      const RowPointers<N>& x,
                                      const RowPointers<N>& low) {
    const bool fine = kIsAffine<F> && ring.p.m.group_shift == 0;
    uint4 rows[N][2], low_rows[N][2], next[N][2], next_low[N][2];
    FetchRows(x, begin, rows);
    if constexpr (WithLow) FetchRows(low, begin, low_rows);
    Sums<R, N> sums = {};
    int stage = 0;
#pragma unroll 2
    for (int unit = begin; unit < end; ++unit) {
      const int ahead = unit + kStages - 1;
      if (ahead < end) ring.Fetch(ahead, stage == 0 ? kStages - 1 : stage - 1);
      CommitCopies();
      // The last one reads what it has again.
      FetchRows(x, min(unit + 1, end - 1), next);
      if constexpr (WithLow) FetchRows(low, min(unit + 1, end - 1), next_low);
      WaitForCopies<kStages - 1>();
      // Scales were copied by other lanes.
      __syncwarp();
      uint4 raw[R][kPieces<F>];
      ring.Read(stage, raw);
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
        if constexpr (WithLow) {
          low_rows[n][0] = next_low[n][0];
          low_rows[n][1] = next_low[n][1];
        }
      }
      if (++stage == kStages) stage = 0;
    }
    WaitForCopies<0>();
  }
};

}  // namespace conclave::kernels::cuda
