// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/attention.h"
#include "kernels/gdn.h"
#include "tests/testing/bits.h"
#include "tests/testing/every_target.h"
#include "tests/testing/machine.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {

using testing::Bits;

inline double Error(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return 1e9;
  return testing::RelativeError(a.data(), b.data(), a.size());
}

// A float32 weight with its memory.
struct TestWeight {
  TestWeight(uint32_t seed, int64_t rows, int64_t cols, double amplitude)
      : rows(rows),
        cols(cols),
        data(testing::Seeded(seed).Floats(rows * cols, amplitude)) {}
  WeightView view() const {
    return {data.data(), DType::kF32, rows, cols, cols};
  }
  int64_t rows, cols;
  std::vector<float> data;
};

// One sequence's rows of a step; Batch turns them into SequenceRows.
struct Piece {
  std::vector<float> u = {};  // [rows, hidden]
  int32_t position = 0;
  std::vector<int32_t> cells = {};
  int32_t slot_in = -1;
  std::vector<int32_t> slots_out = {0};
  std::vector<int32_t> kv_blocks = {};
};

struct Batch {
  // Views `pieces`, which must live as long.
  Batch(const std::vector<Piece>& pieces, int32_t hidden) {
    for (const Piece& piece : pieces) {
      const auto rows = static_cast<int32_t>(piece.u.size()) / hidden;
      sequences.push_back({.row_begin = step.rows,
                           .rows = rows,
                           .position = piece.position,
                           .cells = piece.cells,
                           .state_slot_in = piece.slot_in,
                           .state_slots_out = piece.slots_out,
                           .kv_blocks = piece.kv_blocks});
      u.insert(u.end(), piece.u.begin(), piece.u.end());
      step.rows += rows;
    }
    step.sequences = sequences;
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  std::vector<SequenceRows> sequences;
  std::vector<float> u;
  StepBatch step;
};

// Ends of cells of `rows` new rows after `position`, on the grid of 64.
inline std::vector<int32_t> CellsOf(int32_t position, int32_t rows) {
  std::vector<int32_t> cells = {};
  for (int32_t end = 64 - position % 64; end < rows; end += 64) {
    cells.push_back(end);
  }
  cells.push_back(rows);
  return cells;
}

inline std::vector<float> Slice(const std::vector<float>& all,
                                size_t begin,
                                size_t count) {
  return {all.begin() + begin, all.begin() + begin + count};
}

}  // namespace conclave::kernels
