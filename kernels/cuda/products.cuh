// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/wide.cuh"

// Chooses the kernel of a product; included by the one file of each format.
namespace conclave::kernels::cuda {

inline int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Warps that split the columns: some 12 units each, so that a matrix of few
// tiles still fills the device.
inline int32_t WarpsFor(int32_t units, int32_t blocks, int32_t processors) {
  int32_t warps = std::clamp(DivideUp(units, 12), 1, 8);
  while (warps < 8 && blocks * warps < 12 * processors && units >= 4 * warps) {
    warps *= 2;
  }
  return std::min(warps, 8);
}

template <DeviceFormat F, Use U, int R, int N>
absl::Status RunNarrow(DeviceQueue* queue,
                       const ProductArgs& args,
                       int32_t groups) {
  const auto tiles = static_cast<unsigned>(DivideUp(args.m.tiles, R));
  const auto count = static_cast<unsigned>(groups);
  const int32_t warps = WarpsFor(
      args.m.units, static_cast<int32_t>(tiles), queue->multiprocessors());
  return Launch(
      queue,
      "a product of few rows",
      NarrowProduct<F, U, R, N>,
      {.blocks = U == Use::kDense ? dim3(count, tiles) : dim3(tiles, count),
       .threads = dim3(warps * kLanes),
       .shared_bytes = Narrow<F, R, N>::SharedBytes(warps)},
      args);
}

template <DeviceFormat F, Use U, int N>
absl::Status RunNarrow(DeviceQueue* queue,
                       const ProductArgs& args,
                       int32_t groups) {
  if constexpr (U == Use::kGateUp) {
    return RunNarrow<F, U, 2, N>(queue, args, groups);
  } else if constexpr (U == Use::kDown) {
    return RunNarrow<F, U, 1, N>(queue, args, groups);
  } else {
    // Two tiles share what they read of the rows; few tiles fill the device
    // one by one only.
    return args.m.tiles >= 4 * queue->multiprocessors()
               ? RunNarrow<F, U, 2, N>(queue, args, groups)
               : RunNarrow<F, U, 1, N>(queue, args, groups);
  }
}

template <DeviceFormat F, Use U>
absl::Status RunUse(DeviceQueue* queue,
                    const ProductArgs& args,
                    bool bf16,
                    int32_t group_rows,
                    int32_t groups) {
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
      return RunNarrow<F, U, 1>(queue, args, groups);
    case 16:
      return RunNarrow<F, U, 2>(queue, args, groups);
    case 32:
      return RunNarrow<F, U, 4>(queue, args, groups);
    default:
      break;
  }
  const auto tiles = static_cast<unsigned>(DivideUp(args.m.tiles, kWideTiles));
  return Launch(
      queue,
      "a product of many rows",
      WideProduct<F, U>,
      {.blocks = U == Use::kDense ? dim3(count, tiles) : dim3(tiles, count),
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
                              int32_t groups) {
  switch (use) {
    case Use::kDense:
      return RunUse<F, Use::kDense>(queue, args, bf16, group_rows, groups);
    case Use::kGateUp:
      return RunUse<F, Use::kGateUp>(queue, args, bf16, group_rows, groups);
    case Use::kDown:
      break;
  }
  return RunUse<F, Use::kDown>(queue, args, bf16, group_rows, groups);
}

}  // namespace conclave::kernels::cuda
