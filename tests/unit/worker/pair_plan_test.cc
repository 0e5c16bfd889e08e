// SPDX-License-Identifier: Apache-2.0
#include "worker/pair_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "tests/testing/seeded.h"

namespace conclave::worker {
namespace {

using ::testing::ElementsAre;

struct Entries {
  std::vector<int32_t> slice, row;
  std::vector<float> weight;
  kernels::ExpertEntries view() const { return {slice, row, weight}; }
};

// The plan of rows [begin, end), read back as a device reads it.
struct Read {
  Read(const Entries& entries, int32_t begin, int32_t end, int32_t group) {
    plan.Make(entries.view(), begin, end, group);
    words.assign(plan.words().begin(), plan.words().end());
    device = plan.Entries(words.data(), 99);
    sums = plan.Sums(words.data());
  }
  std::vector<int32_t> Group(int32_t i) const {
    return {device.groups + 4 * i, device.groups + 4 * i + 4};
  }
  PairPlan plan;
  std::vector<int32_t> words;
  kernels::DeviceEntries device;
  kernels::DevicePairSums sums;
};

TEST(PairPlan, GroupsAreOfOneSliceAndSumsInItsOrder) {
  const Entries entries = {
      {0, 0, 0, 2, 2, 7}, {0, 1, 3, 1, 2, 1}, {.5f, .25f, 1.f, 2.f, 3.f, 4.f}};
  const Read read(entries, 0, 4, 2);
  EXPECT_EQ(read.device.rows, 4);
  EXPECT_EQ(read.device.experts, 99);
  EXPECT_EQ(read.device.group_rows, 2);
  ASSERT_EQ(read.device.groups_max, 4);
  EXPECT_EQ(*read.device.group_count, 4);
  EXPECT_THAT(read.Group(0), ElementsAre(0, 0, 2, 0));
  EXPECT_THAT(read.Group(1), ElementsAre(0, 2, 1, 0));
  EXPECT_THAT(read.Group(2), ElementsAre(2, 3, 2, 0));
  EXPECT_THAT(read.Group(3), ElementsAre(7, 5, 1, 0));
  const auto ints = [](const int32_t* from, int n) {
    return std::vector<int32_t>(from, from + n);
  };
  EXPECT_THAT(ints(read.device.row, 6), ElementsAre(0, 1, 3, 1, 2, 1));
  EXPECT_THAT(ints(read.sums.first, 5), ElementsAre(0, 1, 4, 5, 6));
  EXPECT_THAT(ints(read.sums.pair, 6), ElementsAre(0, 1, 3, 5, 4, 2));
  EXPECT_THAT(std::vector<float>(read.sums.weight, read.sums.weight + 6),
              ElementsAre(.5f, .25f, 2.f, 4.f, 3.f, 1.f));
}

TEST(PairPlan, APieceKnowsItsOwnRowsOnly) {
  const Entries entries = {{0, 0, 3, 3}, {0, 2, 1, 2}, {1.f, 2.f, 3.f, 4.f}};
  const auto spread = PairPlan::SpreadOf(entries.view(), 2, 3);
  EXPECT_EQ(spread.pairs, 2);
  EXPECT_EQ(spread.slices, 2);
  const Read read(entries, 2, 3, 8);
  ASSERT_EQ(read.device.groups_max, 2);
  EXPECT_THAT(read.Group(1), ElementsAre(3, 1, 1, 0));
  EXPECT_EQ(read.device.row[0], 0);
  EXPECT_EQ(read.device.row[1], 0);
  EXPECT_FLOAT_EQ(read.sums.weight[1], 4.f);
}

TEST(PairPlan, PiecesHoldWhatFits) {
  const std::vector<int32_t> pairs = {3, 3, 1, 9, 1, 1, 1};
  EXPECT_EQ(RowsThatFit(pairs, 0, 8, 6), 2);
  EXPECT_EQ(RowsThatFit(pairs, 2, 8, 6), 3);
  EXPECT_EQ(RowsThatFit(pairs, 3, 8, 6), 4);  // a row at least
  EXPECT_EQ(RowsThatFit(pairs, 4, 2, 6), 6);
  EXPECT_EQ(RowsThatFit(pairs, 4, 8, 6), 7);
  const Entries entries = {{0, 1, 1}, {2, 0, 2}, {1.f, 1.f, 1.f}};
  EXPECT_THAT(CountPairs(entries.view(), 3), ElementsAre(1, 0, 2));
}

// Whatever is routed where: every pair is in one group of its slice and in its
// row's sum once.
TEST(PairPlan, EveryPairOnce) {
  testing::Seeded seeded(1);
  for (const int32_t group : {1, 8, 16, 32, 128}) {
    Entries entries;
    const int32_t rows = 1 + seeded.Int(300);
    for (int32_t slice = 0; slice < 20; ++slice) {
      const int32_t odds = 1 + seeded.Int(20);
      for (int32_t row = 0; row < rows; ++row) {
        if (seeded.Int(odds) != 0) continue;
        entries.slice.push_back(slice);
        entries.row.push_back(row);
        entries.weight.push_back(static_cast<float>(seeded.Real()));
      }
    }
    const Read read(entries, 0, rows, group);
    const auto pairs = static_cast<int32_t>(entries.row.size());
    EXPECT_LE(read.words.size(), PairPlan::WordsMax(rows, pairs));
    int32_t next = 0;
    for (int32_t g = 0; g < read.device.groups_max; ++g) {
      const auto at = read.Group(g);
      EXPECT_EQ(at[1], next);
      EXPECT_GE(at[2], 1);
      EXPECT_LE(at[2], group);
      for (int32_t p = at[1]; p < at[1] + at[2]; ++p) {
        EXPECT_EQ(entries.slice[p], at[0]);
        EXPECT_EQ(read.device.row[p], entries.row[p]);
      }
      next += at[2];
    }
    EXPECT_EQ(next, pairs);
    std::set<int32_t> seen;
    for (int32_t r = 0; r < rows; ++r) {
      int32_t last = -1;
      for (int32_t i = read.sums.first[r]; i < read.sums.first[r + 1]; ++i) {
        const int32_t pair = read.sums.pair[i];
        EXPECT_EQ(entries.row[pair], r);
        EXPECT_GT(entries.slice[pair], last);
        EXPECT_EQ(read.sums.weight[i], entries.weight[pair]);
        last = entries.slice[pair];
        EXPECT_TRUE(seen.insert(pair).second);
      }
    }
    EXPECT_EQ(static_cast<int32_t>(seen.size()), pairs);
  }
}

}  // namespace
}  // namespace conclave::worker
