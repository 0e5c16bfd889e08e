// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

// How products of few rows are cut into blocks.
namespace conclave::kernels::cuda {

inline int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Blocks that a multiprocessor has room for: of two tiles and 8 rows, of 16
// rows, of 32.
inline constexpr int kSmallBlocks = 5;
inline constexpr int kBlocksOf16Rows = 3;
inline constexpr int kBlocksOf32Rows = 2;

// Whether so many of those run at once: then they beat half as many of four
// tiles, which have fewer warps and leave multiprocessors idle at the end.
inline bool SmallBlocksFit(int32_t multiprocessors, int64_t blocks) {
  return blocks <= int64_t{kSmallBlocks} * multiprocessors;
}

// Parts of the columns, for a product of `blocks` blocks a part of which
// `resident` fit on a multiprocessor: the fullest one has about blocks x parts
// / multiprocessors of them, each with 1 / parts of the columns; the first
// part of that is latency, and who adds parts up reads each.
inline int32_t PartsOf(int32_t multiprocessors,
                       int32_t resident,
                       int32_t blocks,
                       int32_t parts_max) {
  constexpr double kReading = 0.05;
  int32_t best = 1;
  double least = 0;
  for (int32_t p = 1; p <= parts_max; ++p) {
    if (p > 1 && blocks * p > resident * multiprocessors) break;
    const double cost =
        (DivideUp(blocks * p, multiprocessors) + 1.0) / p + kReading * p;
    if (p == 1 || cost < least) {
      least = cost;
      best = p;
    }
  }
  return best;
}

}  // namespace conclave::kernels::cuda
