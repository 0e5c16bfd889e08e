// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "coordinator/cluster/placement.h"
#include "tests/testing/seeded.h"

namespace conclave::experts {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kTopK = 4;
constexpr ExpertShape kShape{
    .layers = 3, .experts = 16, .intermediate = 64, .hidden = 32};

struct Choices {
  std::vector<int32_t> expert;
  std::vector<float> weight;
  Routing routing() const {
    return {.rows = static_cast<int32_t>(expert.size()) / kTopK,
            .top_k = kTopK,
            .expert = expert,
            .weight = weight};
  }
};

// `favoured` experts get most of the rows, so that loads are uneven and many
// experts stay empty.
Choices RandomChoices(int32_t rows, int32_t favoured, testing::Seeded* random) {
  Choices out;
  for (int32_t row = 0; row < rows; ++row) {
    std::vector<int32_t> chosen;
    while (chosen.size() < kTopK) {
      const int32_t span = random->Int(8) > 0 ? favoured : kShape.experts;
      const int32_t expert = random->Int(span);
      if (std::count(chosen.begin(), chosen.end(), expert) > 0) continue;
      chosen.push_back(expert);
      out.expert.push_back(expert);
      out.weight.push_back(static_cast<float>(random->Real()));
    }
  }
  return out;
}

PlacementIndex RandomIndex(testing::Seeded* random) {
  v1::ClusterConfig config;
  const int32_t workers = random->Int(5);
  for (int32_t i = 0; i < workers; ++i) {
    v1::Worker* worker = config.add_workers();
    worker->set_name(absl::StrCat("w", i));
    worker->set_share(1 + random->Int(2));
  }
  const bool columns = random->Int(2) == 1;
  if (columns) config.mutable_placement()->set_split("columns");
  if (workers > 0 && !columns && random->Int(2) == 1) {
    config.mutable_placement()->set_coordinator_share(1);
  }
  if (random->Int(2) == 1) config.mutable_placement()->set_shards(4);
  auto placement = cluster::MakePlacement(config, kShape);
  if (!placement.ok()) placement = cluster::MakePlacement({}, kShape);
  auto index = PlacementIndex::Create(*placement, kShape);
  EXPECT_TRUE(index.ok()) << index.status();
  return *std::move(index);
}

// The slice that a local index of a shard's layer means.
Slice SliceOf(const Shard& shard, LayerId layer, int32_t local) {
  for (const Slice& slice : shard.slices) {
    if (slice.layer == layer && local-- == 0) return slice;
  }
  ADD_FAILURE() << "no such local index";
  return {};
}

void ExpectSorted(const ShardWork& work) {
  for (size_t i = 1; i < work.row.size(); ++i) {
    EXPECT_LT(std::pair(work.slice[i - 1], work.row[i - 1]),
              std::pair(work.slice[i], work.row[i]));
  }
}

// (token, expert, first column) -> (holder, weight) of every entry.
using Sent = std::multimap<std::tuple<int32_t, int32_t, int32_t>,
                           std::pair<WorkerId, float>>;

Sent Flatten(const DispatchPlan& plan,
             LayerId layer,
             const PlacementIndex& index) {
  Sent sent;
  for (const HolderPart& part : plan.parts) {
    EXPECT_FALSE(part.shards.empty());
    EXPECT_TRUE(std::is_sorted(part.tokens.begin(), part.tokens.end()));
    EXPECT_EQ(std::adjacent_find(part.tokens.begin(), part.tokens.end()),
              part.tokens.end());
    std::vector<bool> used(part.tokens.size());
    for (const ShardWork& work : part.shards) {
      EXPECT_FALSE(work.row.empty());
      ExpectSorted(work);
      EXPECT_EQ(index.holder(work.shard), part.holder);
      const Shard& shard =
          index.placement().shards[static_cast<size_t>(Index(work.shard))];
      for (size_t i = 0; i < work.row.size(); ++i) {
        const Slice slice = SliceOf(shard, layer, work.slice[i]);
        used[work.row[i]] = true;
        sent.insert(
            {{part.tokens[work.row[i]], Index(slice.expert), slice.begin},
             {part.holder, work.weight[i]}});
      }
    }
    EXPECT_EQ(std::count(used.begin(), used.end(), false), 0)
        << "a row was sent that nobody needs";
  }
  return sent;
}

TEST(BuildPlan, EveryChoiceGoesToEverySliceOnce) {
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    testing::Seeded random(seed);
    const PlacementIndex index = RandomIndex(&random);
    const Choices choices =
        RandomChoices(random.Int(40), 5 + random.Int(12), &random);
    const LayerId layer{random.Int(3)};
    const auto plan = BuildPlan(choices.routing(), layer, index);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const Sent sent = Flatten(*plan, layer, index);
    size_t expected = 0;
    for (size_t i = 0; i < choices.expert.size(); ++i) {
      for (size_t s = 0; s < index.placement().shards.size(); ++s) {
        for (const Slice& slice : index.placement().shards[s].slices) {
          if (slice.layer != layer ||
              Index(slice.expert) != choices.expert[i]) {
            continue;
          }
          ++expected;
          const std::tuple<int32_t, int32_t, int32_t> key(
              i / kTopK, choices.expert[i], slice.begin);
          ASSERT_EQ(sent.count(key), 1u);
          EXPECT_EQ(sent.find(key)->second,
                    std::pair(index.placement().holder[s], choices.weight[i]));
        }
      }
    }
    EXPECT_EQ(sent.size(), expected);
    for (size_t i = 1; i < plan->parts.size(); ++i) {
      EXPECT_LT(plan->parts[i - 1].holder, plan->parts[i].holder);
    }
  }
}

PlacementIndex TwoHalves() {
  v1::ClusterConfig config;
  config.add_workers()->set_name("w0");
  config.add_workers()->set_name("w1");
  return *PlacementIndex::Create(*cluster::MakePlacement(config, kShape),
                                 kShape);
}

TEST(BuildPlan, IsReadable) {
  const Choices choices{.expert = {3, 9, 1, 0, 8, 9, 10, 11},
                        .weight = {.5f, .25f, .125f, .125f, 1, 2, 3, 4}};
  const auto plan = BuildPlan(choices.routing(), LayerId{1}, TwoHalves());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(ToString(*plan),
            "worker 0: tokens 0\n"
            "  shard 0: 0<-0*0.125 1<-0*0.125 3<-0*0.5\n"
            "worker 1: tokens 0 1\n"
            "  shard 1: 0<-1*1 1<-0*0.25 1<-1*2 2<-1*3 3<-1*4\n");
  EXPECT_THAT(DistinctRows(plan->parts[1].shards[0].row, 2), ElementsAre(0, 1));
}

TEST(BuildPlan, NoRowsNoParts) {
  const auto plan = BuildPlan(Choices{}.routing(), LayerId{0}, TwoHalves());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->parts.empty());
}

TEST(BuildPlan, RefusesWhatDoesNotExist) {
  const PlacementIndex index = TwoHalves();
  Choices choices{.expert = {0, 1, 2, 16}, .weight = {1, 1, 1, 1}};
  auto plan = BuildPlan(choices.routing(), LayerId{2}, index);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(plan.status().message(),
              HasSubstr("layer 2: row 0 chose expert 16"));
  choices.expert[3] = -1;
  EXPECT_EQ(BuildPlan(choices.routing(), LayerId{2}, index).status().code(),
            absl::StatusCode::kInvalidArgument);
  choices.expert[3] = 2;
  plan = BuildPlan(choices.routing(), LayerId{2}, index);
  EXPECT_THAT(plan.status().message(), HasSubstr("expert 2 twice"));
  choices.expert[3] = 3;
  EXPECT_TRUE(BuildPlan(choices.routing(), LayerId{2}, index).ok());
  EXPECT_EQ(BuildPlan(choices.routing(), LayerId{3}, index).status().code(),
            absl::StatusCode::kInvalidArgument);
  choices.weight[1] = __builtin_nanf("");
  EXPECT_EQ(BuildPlan(choices.routing(), LayerId{2}, index).status().code(),
            absl::StatusCode::kInvalidArgument);
  choices.weight.pop_back();
  EXPECT_EQ(BuildPlan(choices.routing(), LayerId{2}, index).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(BuildPlan, BoundsTheRows) {
  testing::Seeded random(1);
  const Choices choices = RandomChoices(limits::kStepRowsMax + 1, 16, &random);
  EXPECT_EQ(
      BuildPlan(choices.routing(), LayerId{0}, TwoHalves()).status().code(),
      absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace conclave::experts
