// SPDX-License-Identifier: Apache-2.0
#include "worker/pair_plan.h"

#include <algorithm>
#include <bit>

namespace conclave::worker {
namespace {

constexpr int32_t kGroupWords = 4;

}  // namespace

std::vector<int32_t> CountPairs(const kernels::ExpertEntries& entries,
                                int32_t rows) {
  std::vector<int32_t> out(static_cast<size_t>(rows));
  for (const int32_t row : entries.row) ++out[static_cast<size_t>(row)];
  return out;
}

int32_t RowsThatFit(std::span<const int32_t> pairs_of_row,
                    int32_t begin,
                    int32_t rows_max,
                    int32_t pairs_max) {
  const auto all = static_cast<int32_t>(pairs_of_row.size());
  int32_t end = begin + 1;
  int32_t pairs = pairs_of_row[static_cast<size_t>(begin)];
  for (; end < all && end - begin < rows_max; ++end) {
    pairs += pairs_of_row[static_cast<size_t>(end)];
    if (pairs > pairs_max) break;
  }
  return end;
}

PairPlan::Spread PairPlan::SpreadOf(const kernels::ExpertEntries& entries,
                                    int32_t begin,
                                    int32_t end) {
  Spread out;
  int32_t last = -1;
  for (size_t i = 0; i < entries.row.size(); ++i) {
    if (entries.row[i] < begin || entries.row[i] >= end) continue;
    ++out.pairs;
    if (entries.slice[i] != last) ++out.slices;
    last = entries.slice[i];
  }
  return out;
}

size_t PairPlan::WordsMax(int32_t rows, int32_t pairs) {
  // No more groups than pairs.
  return (size_t{kGroupWords} + 3) * static_cast<size_t>(pairs) +
         static_cast<size_t>(rows) + 2;
}

void PairPlan::Make(const kernels::ExpertEntries& entries,
                    int32_t begin,
                    int32_t end,
                    int32_t group_rows) {
  rows_ = end - begin;
  group_rows_ = group_rows;
  std::vector<int32_t> groups, row, weight;
  std::vector<int32_t> first(static_cast<size_t>(rows_) + 1);
  for (size_t i = 0; i < entries.row.size(); ++i) {
    if (entries.row[i] < begin || entries.row[i] >= end) continue;
    const auto pair = static_cast<int32_t>(row.size());
    const size_t last = groups.size() - kGroupWords;
    if (groups.empty() || groups[last] != entries.slice[i] ||
        groups[last + 2] == group_rows) {
      groups.insert(groups.end(), {entries.slice[i], pair, 1, 0});
    } else {
      ++groups[last + 2];
    }
    row.push_back(entries.row[i] - begin);
    weight.push_back(std::bit_cast<int32_t>(entries.weight[i]));
    ++first[static_cast<size_t>(row.back()) + 1];
  }
  pairs_ = static_cast<int32_t>(row.size());
  groups_ = static_cast<int32_t>(groups.size()) / kGroupWords;
  for (size_t r = 1; r < first.size(); ++r) first[r] += first[r - 1];
  // Pairs ascend by slice, so each row's come in that order.
  std::vector<int32_t> next = first, pair(row.size()), sorted(row.size());
  for (size_t i = 0; i < row.size(); ++i) {
    const auto at = static_cast<size_t>(next[static_cast<size_t>(row[i])]++);
    pair[at] = static_cast<int32_t>(i);
    sorted[at] = weight[i];
  }
  words_.clear();
  std::vector<int32_t> count = {groups_};
  for (auto* part : {&groups, &count, &row, &first, &pair, &sorted}) {
    words_.insert(words_.end(), part->begin(), part->end());
  }
}

kernels::DeviceEntries PairPlan::Entries(int32_t* at, int32_t slices) const {
  int32_t* count = at + kGroupWords * groups_;
  return {.rows = rows_,
          .per_row = 0,
          .experts = slices,
          .group_rows = group_rows_,
          .groups_max = groups_,
          .all_groups = true,
          .row = count + 1,
          .place = nullptr,
          .expert = nullptr,
          .weight = nullptr,
          .groups = at,
          .group_count = count};
}

kernels::DevicePairSums PairPlan::Sums(const int32_t* at) const {
  const int32_t* first = at + kGroupWords * groups_ + 1 + pairs_;
  const int32_t* pair = first + rows_ + 1;
  return {.rows = rows_,
          .first = first,
          .pair = pair,
          .weight = reinterpret_cast<const float*>(pair + pairs_)};
}

}  // namespace conclave::worker
