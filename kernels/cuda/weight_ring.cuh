// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/copy_async.cuh"
#include "kernels/cuda/product_args.cuh"

// The weights of a warp on their way from memory to tensor cores: a ring in
// shared memory, which only this warp uses.
namespace conclave::kernels::cuda {

// Units of a warp that are on their way at a time: some 12 KiB.
constexpr int RingOf(int unit_bytes) {
  constexpr int kBytes = 12 << 10, kUnitsMax = 8;
  const int units = kBytes / unit_bytes;
  return units < 2 ? 2 : units > kUnitsMax ? kUnitsMax : units;
}

// Bytes of the scales of one row pair (g, g + 8) and group; through the ring
// where a lane can copy them.
template <DeviceFormat F>
inline constexpr int kPairBytes = F == DeviceFormat::kGptq4 ? 4
                                  : kIsAffine<F>            ? 8
                                                            : 0;

template <DeviceFormat F, int R>
struct WeightRing {
  static constexpr int kWeightBytes = R * kUnitBytes<F>;
  static constexpr int kScaleBytes = R * 8 * kPairBytes<F>;  // of half a unit
  static constexpr int kSlotBytes = kWeightBytes + 2 * kScaleBytes;
  static constexpr int kStages = RingOf(kSlotBytes);

  const ProductArgs& p;
  const uint8_t* from;    // this lane's piece of the first tile
  const uint8_t* scales;  // of the expert
  uint8_t* ring;          // the warp's first slot
  int tile;               // first of R
  int lane;

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
                            half * kScaleBytes +
                            (r * 8 + lane / 4) * kPairBytes<F>;
      if constexpr (F == DeviceFormat::kGptq4) {
        return Scales<F>({*reinterpret_cast<const uint32_t*>(from), 0});
      } else {
        return Scales<F>(*reinterpret_cast<const uint2*>(from));
      }
    } else {
      return Scales<F>(
          LoadScales<F>(p.m, scales, tile + r, 2 * unit + half, lane / 4));
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

  // This lane's pieces of a slot, which has arrived.
  __device__ __forceinline__ void Read(int stage,
                                       uint4 (&raw)[R][kPieces<F>]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < kPieces<F>; ++i) {
        raw[r][i] = *reinterpret_cast<const uint4*>(ring + stage * kSlotBytes +
                                                    r * kUnitBytes<F> +
                                                    (i * kLanes + lane) * 16);
      }
    }
  }
};

}  // namespace conclave::kernels::cuda
