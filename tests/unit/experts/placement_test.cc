// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/seeded.h"

namespace conclave::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr ExpertShape kShape{
    .layers = 3, .experts = 16, .intermediate = 64, .hidden = 32};

v1::ClusterConfig Config(const std::vector<double>& shares) {
  v1::ClusterConfig config;
  for (size_t i = 0; i < shares.size(); ++i) {
    v1::Worker* worker = config.add_workers();
    worker->set_name(absl::StrCat("w", i));
    worker->set_share(shares[i]);
  }
  return config;
}

// Slices of each shard in layer 1 (all layers are cut alike).
std::vector<size_t> SlicesPerShard(const Placement& placement) {
  std::vector<size_t> out;
  for (const Shard& shard : placement.shards) {
    size_t n = 0;
    for (const Slice& slice : shard.slices) n += slice.layer == LayerId{1};
    out.push_back(n);
  }
  return out;
}

std::vector<int32_t> Widths(const Placement& placement) {
  std::vector<int32_t> out;
  for (const Shard& shard : placement.shards) {
    out.push_back(shard.slices.front().width());
  }
  return out;
}

TEST(Placement, WithoutWorkersTheCoordinatorHoldsOneShard) {
  const auto placement = MakePlacement(Config({}), kShape);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(placement->holder, ElementsAre(kCoordinator));
  EXPECT_THAT(SlicesPerShard(*placement), ElementsAre(16));
}

TEST(Placement, CutsExpertsByLargestRemainder) {
  // 16 * (1, 2, 4) / 7 = 2.29, 4.57, 9.14: the odd one goes to w1.
  const auto placement = MakePlacement(Config({1, 2, 4}), kShape);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(SlicesPerShard(*placement), ElementsAre(2, 5, 9));
  EXPECT_THAT(placement->holder,
              ElementsAre(WorkerId{0}, WorkerId{1}, WorkerId{2}));
}

TEST(Placement, CutsColumnsInMultiplesOf16) {
  v1::ClusterConfig config = Config({3, 1});
  config.mutable_placement()->set_split("columns");
  const auto placement = MakePlacement(config, kShape);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(SlicesPerShard(*placement), ElementsAre(16, 16));
  EXPECT_THAT(Widths(*placement), ElementsAre(48, 16));
}

TEST(Placement, TheCoordinatorKeepsItsShareFirst) {
  v1::ClusterConfig config = Config({1, 1});
  config.mutable_placement()->set_coordinator_share(2);
  const auto placement = MakePlacement(config, kShape);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(placement->holder,
              ElementsAre(kCoordinator, WorkerId{0}, WorkerId{1}));
  EXPECT_THAT(SlicesPerShard(*placement), ElementsAre(8, 4, 4));
}

TEST(Placement, GivenShardsDependOnTheirNumberAlone) {
  v1::ClusterConfig config = Config({1, 3});
  config.mutable_placement()->set_shards(5);
  const auto two = MakePlacement(config, kShape);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_THAT(SlicesPerShard(*two), ElementsAre(4, 3, 3, 3, 3));
  EXPECT_THAT(
      two->holder,
      ElementsAre(
          WorkerId{0}, WorkerId{1}, WorkerId{1}, WorkerId{1}, WorkerId{1}));
  config = Config({});
  config.mutable_placement()->set_shards(5);
  const auto alone = MakePlacement(config, kShape);
  ASSERT_TRUE(alone.ok()) << alone.status();
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(alone->shards[i].slices, two->shards[i].slices);
    EXPECT_EQ(alone->holder[i], kCoordinator);
  }
}

TEST(Placement, ExplicitWins) {
  v1::ClusterConfig config = Config({1});
  config.mutable_placement()->set_shards(7);
  config.mutable_placement()->set_split("nonsense");
  auto* remote = config.mutable_placement()->add_explicit_();
  remote->set_holder("w0");
  auto* range = remote->add_slices();
  range->set_layer_begin(1);
  range->set_layer_end(3);
  auto* local = config.mutable_placement()->add_explicit_();
  local->set_holder("coordinator");
  local->add_slices()->set_layer_end(1);
  const auto placement = MakePlacement(config, kShape);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(placement->holder, ElementsAre(WorkerId{0}, kCoordinator));
  EXPECT_THAT(SlicesPerShard(*placement), ElementsAre(16, 0));
  EXPECT_EQ(placement->shards[1].slices.size(), 16u);
}

TEST(Placement, EveryColumnIsHeldOnceForRandomShares) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    testing::Seeded random(seed);
    std::vector<double> shares(1 + random.Int(4));
    double total = 0;
    for (double& share : shares) total += share = 1 + random.Int(4);
    v1::ClusterConfig config = Config(shares);
    const bool columns = random.Int(2) == 1;
    config.mutable_placement()->set_split(columns ? "columns" : "experts");
    const bool given = random.Int(2) == 1;
    if (given) config.mutable_placement()->set_shards(4);
    const auto placement = MakePlacement(config, kShape);
    const double units = columns || given ? 4 : 16;
    if (!placement.ok()) {  // somebody's share rounds to nothing
      EXPECT_LT(units / total, 1) << placement.status();
      continue;
    }
    EXPECT_TRUE(Validate(*placement, kShape).ok());
    // Nobody is further than one unit from the exact share.
    std::map<WorkerId, double> held;
    for (size_t i = 0; i < placement->shards.size(); ++i) {
      for (const Slice& slice : placement->shards[i].slices) {
        held[placement->holder[i]] += slice.width();
      }
    }
    const double all = 3.0 * 16 * 64;
    for (size_t i = 0; i < shares.size(); ++i) {
      const double exact = all * shares[i] / total;
      EXPECT_NEAR(held[WorkerId{static_cast<int32_t>(i)}], exact, all / units);
    }
  }
}

std::string ErrorOf(const v1::ClusterConfig& config) {
  const auto placement = MakePlacement(config, kShape);
  EXPECT_EQ(placement.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(placement.status().message());
}

TEST(Placement, ErrorsNameFieldAndWorker) {
  EXPECT_THAT(ErrorOf(Config({1, -1})), HasSubstr("workers[1].share"));
  EXPECT_THAT(ErrorOf(Config({1, 1000})), HasSubstr("w0 would hold nothing"));
  v1::ClusterConfig config = Config({1, 1});
  config.mutable_placement()->set_split("rows");
  EXPECT_THAT(ErrorOf(config), HasSubstr("placement.split"));
  config = Config({1, 1});
  config.mutable_placement()->set_shards(17);
  EXPECT_THAT(ErrorOf(config), HasSubstr("placement.shards"));
  config.mutable_placement()->set_shards(-1);
  EXPECT_THAT(ErrorOf(config), HasSubstr("placement.shards"));
  config.mutable_placement()->set_shards(1);
  EXPECT_THAT(ErrorOf(config), HasSubstr("w1 would hold nothing"));
  config = Config({1, 1});
  config.mutable_placement()->set_coordinator_share(-1);
  EXPECT_THAT(ErrorOf(config), HasSubstr("coordinator_share"));
}

TEST(Placement, ErrorsOfExplicitShards) {
  v1::ClusterConfig config = Config({1});
  auto* entry = config.mutable_placement()->add_explicit_();
  entry->set_holder("w9");
  entry->add_slices();
  EXPECT_THAT(ErrorOf(config), HasSubstr("\"w9\"; there are: coordinator, w0"));
  entry->set_holder("w0");
  entry->mutable_slices(0)->set_expert_end(17);
  EXPECT_THAT(ErrorOf(config), HasSubstr("placement.explicit[0] experts"));
  entry->mutable_slices(0)->set_expert_end(15);
  EXPECT_THAT(ErrorOf(config), HasSubstr("layer 0, expert 15"));
  entry->mutable_slices(0)->set_expert_end(16);
  entry->mutable_slices(0)->set_column_end(24);
  EXPECT_THAT(ErrorOf(config), HasSubstr("multiples of 16"));
  entry->mutable_slices(0)->set_column_end(0);
  entry->add_slices();
  EXPECT_THAT(ErrorOf(config), HasSubstr("each once"));
}

}  // namespace
}  // namespace conclave::cluster
