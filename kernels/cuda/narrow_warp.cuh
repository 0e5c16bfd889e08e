// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/row_values.cuh"
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

template <DeviceFormat F, int R, int N, bool WithLow>
struct Narrow {
  using Ring = WeightRing<F, R>;
  static constexpr int kStages = Ring::kStages;

  static constexpr size_t SharedBytes(int warps) {
    const size_t ring = size_t(warps) * kStages * Ring::kSlotBytes;
    const size_t sums = size_t(warps) * R * N * 4 * kLanes * 4;
    return ring > sums ? ring : sums;
  }

  Ring& ring;
  const RowPointers<N>& x;
  const RowPointers<N>& low;
  float total[R][N][4] = {};

  __device__ __forceinline__ void Scale(int half, const Sums<R, N>& sums) {
    // Codes came as 128 + q, those of 8 bits as two planes of that.
    constexpr float kOffset =
        F == DeviceFormat::kAffine8 ? 128.0f * 17.0f : 128.0f;
    constexpr float kUp = 1.152921504606846976e18f;  // 2^60, twice: 2^120
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const RowScales s = ring.ScalesOf(half, r);
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
                                       const RowValues<N>& x,
                                       Sums<R, N>& sums) {
    constexpr uint32_t kOnes[4] = {
        0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint4 half = x.of[n][step / 2];
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
        const uint4 half = x.of[n][step / 2];
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

  // One unit; the rows of the next one are on their way meanwhile.
  struct Rows {
    RowValues<N> x, low;
  };
  __device__ __forceinline__ void Unit(int unit,
                                       int end,
                                       const Rows& rows,
                                       Rows& next) {
    ring.Fetch();
    if (unit + 1 < end) {
      FetchRows(x, unit + 1, next.x);
      if constexpr (WithLow) FetchRows(low, unit + 1, next.low);
    }
    WaitForCopies<kStages - 1>();
    // Scales were copied by other lanes.
    __syncwarp();
    uint4 raw[R][kPieces<F>];
    ring.Read(raw);
    Sums<R, N> sums;
    Step<true>(raw, 0, rows.x, sums);
    Step<false>(raw, 1, rows.x, sums);
    if constexpr (WithLow) {
      Step<false>(raw, 0, rows.low, sums);
      Step<false>(raw, 1, rows.low, sums);
    }
    if (ring.fine()) {
      Scale(0, sums);
      Step<true>(raw, 2, rows.x, sums);
    } else {
      Step<false>(raw, 2, rows.x, sums);
    }
    Step<false>(raw, 3, rows.x, sums);
    if constexpr (WithLow) {
      Step<false>(raw, 2, rows.low, sums);
      Step<false>(raw, 3, rows.low, sums);
    }
    if constexpr (F != DeviceFormat::kBf16) Scale(ring.fine() ? 1 : 0, sums);
    ring.Pass();
    // Nobody copies into this slot before all have read it.
    __syncwarp();
  }

  // All units of this warp.
  __device__ __forceinline__ void Run(int begin, int end) {
    Rows even, odd;
    FetchRows(x, begin, even.x);
    if constexpr (WithLow) FetchRows(low, begin, even.low);
    for (int unit = begin; unit < end; unit += 2) {
      Unit(unit, end, even, odd);
      if (unit + 1 < end) Unit(unit + 1, end, odd, even);
    }
    WaitForCopies<0>();
  }
};

}  // namespace conclave::kernels::cuda
