// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/wide.cuh"

// Chooses the kernel of a product; included by the one file of each format.
namespace conclave::kernels::cuda {

// Fewer tiles than this are taken one by one.
inline constexpr int32_t kFewTiles = 64;

// Warps of a block, which split its columns.
inline int32_t WarpsFor(int32_t units) {
  constexpr int32_t kUnitsOfAWarp = 4;
  return std::clamp(units / kUnitsOfAWarp, 1, kWarpsMax);
}

template <DeviceFormat F, Use U, int R, int N, bool WithLow>
absl::Status RunNarrow(DeviceQueue* queue,
                       const ProductArgs& args,
                       int32_t groups,
                       int32_t planes) {
  const auto tiles = static_cast<unsigned>(DivideUp(args.m.tiles, R));
  const auto count = static_cast<unsigned>(groups);
  const auto z = static_cast<unsigned>(planes);
  const int32_t warps = WarpsFor(args.m.units / planes);
  return Launch(queue,
                "a product of few rows",
                NarrowProduct<F, U, R, N, WithLow>,
                {.blocks = U == Use::kDense ? dim3(count, tiles, z)
                                            : dim3(tiles, count, z),
                 .threads = dim3(warps * kLanes),
                 .shared_bytes = Narrow<F, R, N, WithLow>::SharedBytes(warps)},
                args);
}

template <DeviceFormat F, Use U, int N>
absl::Status RunNarrow(DeviceQueue* queue,
                       const ProductArgs& args,
                       int32_t groups,
                       int32_t planes) {
  // Tiles that share what is read and summed of the rows; bf16 has no sums.
  constexpr int R = N == 4 || F == DeviceFormat::kBf16 ? 2 : 4;
  if constexpr (U == Use::kDense) {
    if (args.low != nullptr) {
      return RunNarrow<F, U, 1, N, true>(queue, args, groups, planes);
    }
    // Few tiles fill the device one by one only.
    if (args.m.tiles < kFewTiles) {
      return RunNarrow<F, U, 1, N, false>(queue, args, groups, planes);
    }
  }
  if constexpr (N == 1 && R == 4) {
    if (SmallBlocksFit(queue->multiprocessors(),
                       int64_t{DivideUp(args.m.tiles, 2)} * groups * planes)) {
      return RunNarrow<F, U, 2, N, false>(queue, args, groups, planes);
    }
  }
  return RunNarrow<F, U, R, N, false>(queue, args, groups, planes);
}

template <DeviceFormat F, Use U>
absl::Status RunUse(DeviceQueue* queue,
                    const ProductArgs& args,
                    bool bf16,
                    int32_t group_rows,
                    int32_t groups,
                    int32_t planes) {
  const auto count = static_cast<unsigned>(groups);
  if (!bf16) {
    constexpr int kTiles = kExactWarps * (U == Use::kGateUp ? 2 : 1);
    return Launch(queue,
                  "a product in float32",
                  ExactProduct<F, U>,
                  {.blocks = dim3(count, DivideUp(args.m.tiles, kTiles)),
                   .threads = dim3(kExactWarps * kLanes)},
                  args);
  }
  switch (group_rows) {
    case 8:
      return RunNarrow<F, U, 1>(queue, args, groups, planes);
    case 16:
      return RunNarrow<F, U, 2>(queue, args, groups, planes);
    case 32:
      return RunNarrow<F, U, 4>(queue, args, groups, planes);
    default:
      break;
  }
  const auto tiles = static_cast<unsigned>(DivideUp(args.m.tiles, kWideTiles));
  const dim3 blocks =
      U == Use::kDense ? dim3(count, tiles) : dim3(tiles, count);
  if (args.wide) {
    return Launch(queue,
                  "a product of many rows",
                  HopperProduct<F, U>,
                  {.blocks = blocks,
                   .threads = dim3(kHopperThreads),
                   .shared_bytes = kHopperSharedBytes},
                  args);
  }
  return Launch(queue,
                "a product of many rows",
                WideProduct<F, U>,
                {.blocks = blocks,
                 .threads = dim3(kWideWarps * kLanes),
                 .shared_bytes = kWideSharedBytes},
                args);
}

template <DeviceFormat F>
absl::Status Products<F>::Run(DeviceQueue* queue,
                              Use use,
                              const ProductArgs& args,
                              bool bf16,
                              int32_t group_rows,
                              int32_t groups,
                              int32_t planes) {
  switch (use) {
    case Use::kDense:
      return RunUse<F, Use::kDense>(
          queue, args, bf16, group_rows, groups, planes);
    case Use::kGateUp:
      return RunUse<F, Use::kGateUp>(
          queue, args, bf16, group_rows, groups, planes);
    case Use::kDown:
      break;
  }
  return RunUse<F, Use::kDown>(queue, args, bf16, group_rows, groups, planes);
}

}  // namespace conclave::kernels::cuda
