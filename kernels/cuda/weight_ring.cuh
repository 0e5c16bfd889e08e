// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/copy_async.cuh"
#include "kernels/cuda/product_args.cuh"

// The weights of a warp on their way from memory to tensor cores: a ring in
// shared memory, which only this warp uses. A warp has so few instructions for
// each unit that those which find addresses count: all that a lane can know
// beforehand it keeps.
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

// Units begin to end of the R tiles from `tile` on, in order: Fetch puts the
// next one into the ring, if there is one left; Read, ScalesOf and Pass are
// about the oldest that is there.
template <DeviceFormat F, int R>
class WeightRing {
 public:
  static constexpr int kWeightBytes = R * kUnitBytes<F>;
  static constexpr int kScaleBytes = R * 8 * kPairBytes<F>;  // of half a unit
  static constexpr int kSlotBytes = kWeightBytes + 2 * kScaleBytes;
  static constexpr int kStages = RingOf(kSlotBytes);

  // ring: kStages * kSlotBytes of shared memory.
  __device__ __forceinline__ WeightRing(const MatrixArgs& m,
                                        const RowGroup& group,
                                        int tile,
                                        int begin,
                                        int end,
                                        uint8_t* ring)
      : m_(m),
        scales_(group.scales),
        tile_(tile),
        lane_(threadIdx.x % kLanes),
        data_(Keep(SharedAddress(ring) + lane_ * 16)),
        pairs_(Keep(SharedAddress(ring) + kWeightBytes +
                    lane_ / 4 * kPairBytes<F>)),
        to_pairs_(
            Keep(SharedAddress(ring) + kWeightBytes + lane_ * kPairBytes<F>)),
        ahead_(begin),
        unit_(begin),
        end_(end) {
    from_ = group.data +
            (static_cast<int64_t>(tile) * m.units + begin) * kUnitBytes<F> +
            lane_ * 16;
    from_pairs_ = group.scales +
                  (static_cast<int64_t>(tile + lane_ / 8) * m.scale_groups * 8 +
                   lane_ % 8) *
                      kPairBytes<F>;
  }

  // Starts the copies of the first units: nothing here depends on rows.
  __device__ __forceinline__ void Begin() {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) Fetch();
  }

  __device__ __forceinline__ void Fetch() {
    if (ahead_ < end_) {
      const int64_t tile_bytes = m_.units * kUnitBytes<F>;
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < kPieces<F>; ++i) {
          CopyAsync16(data_ + put_ + r * kUnitBytes<F> + i * kLanes * 16,
                      from_ + r * tile_bytes + i * kLanes * 16);
        }
      }
      if constexpr (kIsAffine<F>) FetchScales();
      from_ += kUnitBytes<F>;
      ++ahead_;
    }
    CommitCopies();
    put_ = Next(put_);
  }

  // This lane's pieces, once they have arrived.
  __device__ __forceinline__ void Read(uint4 (&raw)[R][kPieces<F>]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < kPieces<F>; ++i) {
        raw[r][i] =
            LoadShared16(data_ + get_ + r * kUnitBytes<F> + i * kLanes * 16);
      }
    }
  }

  // Of half a unit; FP8: from memory.
  __device__ __forceinline__ RowScales ScalesOf(int half, int r) const {
    if constexpr (kIsAffine<F>) {
      const uint32_t from =
          pairs_ + get_ + half * kScaleBytes + r * 8 * kPairBytes<F>;
      if constexpr (F == DeviceFormat::kGptq4) {
        return Scales<F>({LoadShared4(from), 0});
      } else {
        return Scales<F>(LoadShared8(from));
      }
    } else {
      return Scales<F>(
          LoadScales<F>(m_, scales_, tile_ + r, 2 * unit_ + half, lane_ / 4));
    }
  }

  // To the next unit.
  __device__ __forceinline__ void Pass() {
    ++unit_;
    get_ = Next(get_);
  }

  // Whether groups are half a unit each.
  __device__ __forceinline__ bool fine() const {
    return kIsAffine<F> && m_.group_shift == 0;
  }

 private:
  // The same, which the compiler then cannot compute anew at each use.
  static __device__ __forceinline__ uint32_t Keep(uint32_t address) {
    return __shfl_sync(0xffffffffu, address, threadIdx.x % kLanes);
  }

  static __device__ __forceinline__ uint32_t Next(uint32_t slot) {
    constexpr uint32_t kEnd = kStages * kSlotBytes;
    return slot + kSlotBytes == kEnd ? 0 : slot + kSlotBytes;
  }

  __device__ __forceinline__ void FetchScales() const {
    const auto copy = [&](int half) {
      const int group = (2 * ahead_ + half) >> m_.group_shift;
      CopyAsync<kPairBytes<F>>(
          to_pairs_ + put_ + half * kScaleBytes,
          from_pairs_ + static_cast<int64_t>(group) * (8 * kPairBytes<F>),
          lane_ < R * 8);
    };
    copy(0);
    if (fine()) copy(1);
  }

  const MatrixArgs& m_;
  const uint8_t* const scales_;  // of the expert
  const int tile_;
  const int lane_;
  // Shared addresses in the first slot: this lane's piece of weights, and the
  // scales that it reads and copies.
  const uint32_t data_, pairs_, to_pairs_;
  const uint8_t* from_;        // this lane's piece of the next unit to copy
  const uint8_t* from_pairs_;  // this lane's scales of group 0
  int ahead_;                  // unit to copy next
  int unit_;                   // that is read
  const int end_;
  uint32_t put_ = 0, get_ = 0;  // bytes from the first slot
};

}  // namespace conclave::kernels::cuda
