// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device_pairs.h"
#include "kernels/device_product.h"
#include "kernels/moe.h"

namespace conclave::worker {

// Pairs of each row, [rows].
std::vector<int32_t> CountPairs(const kernels::ExpertEntries& entries,
                                int32_t rows);

// The end of the rows from `begin` on that fit: at most so many rows, and pairs
// of all of them. At least one row.
int32_t RowsThatFit(std::span<const int32_t> pairs_of_row,
                    int32_t begin,
                    int32_t rows_max,
                    int32_t pairs_max);

// Entries of some rows in the form in which a device computes them: pairs
// sorted by slice and row, in groups of one slice each. Made on the host, then
// uploaded as one array.
class PairPlan {
 public:
  // Rows [begin, end); group_rows: of kernels::GroupRowsFor, told of the number
  // of pairs and of slices that have any (Spread).
  struct Spread {
    int32_t pairs = 0;
    int32_t slices = 0;
  };
  static Spread SpreadOf(const kernels::ExpertEntries& entries,
                         int32_t begin,
                         int32_t end);
  void Make(const kernels::ExpertEntries& entries,
            int32_t begin,
            int32_t end,
            int32_t group_rows);

  // What is uploaded, to a 16-byte aligned place, and of how many words at most
  // it consists.
  std::span<const int32_t> words() const { return words_; }
  static size_t WordsMax(int32_t rows, int32_t pairs);

  // Pointers into the uploaded words. Of `place`, `expert` and `weight`, which
  // need as many pairs of each row, there is nothing: those sums are Sums().
  // `slices`: of the stack.
  kernels::DeviceEntries Entries(int32_t* at, int32_t slices) const;
  kernels::DevicePairSums Sums(const int32_t* at) const;

 private:
  int32_t rows_ = 0;
  int32_t pairs_ = 0;
  int32_t groups_ = 0;
  int32_t group_rows_ = 0;
  // groups [groups, 4] | their number | row [pairs] | first [rows + 1] |
  // pair [pairs] | weight [pairs]
  std::vector<int32_t> words_;
};

}  // namespace conclave::worker
