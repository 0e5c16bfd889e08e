// SPDX-License-Identifier: Apache-2.0
#include "common/slices.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

constexpr ExpertShape kShape{2, 3, 64, 32, 16};

Slice At(int layer, int expert, int begin, int end) {
  return {LayerId{layer}, ExpertId{expert}, begin, end};
}

// Two shards, each half of every expert.
Placement Halves() {
  Placement placement;
  for (int s = 0; s < 2; ++s) {
    Shard shard{ShardId{s}, {}};
    for (int layer = 0; layer < 2; ++layer) {
      for (int expert = 0; expert < 3; ++expert) {
        shard.slices.push_back(At(layer, expert, 32 * s, 32 * s + 32));
      }
    }
    placement.shards.push_back(std::move(shard));
    placement.holder.push_back(WorkerId{s});
  }
  return placement;
}

TEST(SlicesTest, AWholePlacementIsValid) {
  EXPECT_TRUE(Validate(Halves(), kShape).ok());
}

TEST(SlicesTest, EveryBrokenRuleIsNamed) {
  struct Case {
    const char* says;
    void (*breaks)(Placement&);
  };
  const Case cases[] = {
      {"one holder per shard", [](Placement& p) { p.holder.pop_back(); }},
      {"has id 0", [](Placement& p) { p.shards[1].id = ShardId{0}; }},
      {"layer 2, expert 2",
       [](Placement& p) { p.shards[0].slices[5].layer = LayerId{2}; }},
      {"3 experts",
       [](Placement& p) { p.shards[0].slices[5].expert = ExpertId{3}; }},
      {"[0, 64)", [](Placement& p) { p.shards[1].slices[0].end = 80; }},
      {"[32, 40): columns cannot be cut there",
       [](Placement& p) { p.shards[1].slices[0].end = 40; }},
      {"must ascend",
       [](Placement& p) {
         std::swap(p.shards[0].slices[0], p.shards[0].slices[1]);
       }},
      {"must ascend",
       [](Placement& p) { p.shards[0].slices[1] = p.shards[0].slices[0]; }},
      {"one width", [](Placement& p) { p.shards[0].slices[1].end = 16; }},
      {"layer 1, expert 2: every column must be held exactly once; column 0",
       [](Placement& p) { p.shards[0].slices.pop_back(); }},
      {"layer 0, expert 0: every column must be held exactly once; column 32",
       [](Placement& p) {
         p.shards[1].slices.erase(p.shards[1].slices.begin());
       }},
      {"layer 0, expert 0: every column must be held exactly once",
       [](Placement& p) { p.shards[1].slices[0] = At(0, 0, 0, 32); }},
  };
  for (const Case& c : cases) {
    Placement placement = Halves();
    c.breaks(placement);
    const absl::Status status = Validate(placement, kShape);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.says;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.says));
  }
}

}  // namespace
}  // namespace conclave
