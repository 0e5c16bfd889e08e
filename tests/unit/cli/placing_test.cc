// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/placing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/config/cluster_config.h"
#include "coordinator/engine.h"
#include "coordinator/planner/devices.h"
#include "coordinator/planner/held.h"
#include "tests/testing/temp_folder.h"

namespace conclave::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kModel[] = "deploy/models/qwen3.5-moe-tiny";

class PlacingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = *checkpoint::Checkpoint::Open(kModel);
    const v1::Limits limits = config::DefaultClusterConfig().limits();
    caches_ = CachesOf(CachesFor(limits, checkpoint_->config()),
                       checkpoint_->config());
  }

  static v1::ClusterConfig Parse(const std::string& yaml) {
    auto config = config::ParseClusterConfig(yaml, "test.yaml");
    EXPECT_TRUE(config.ok()) << config.status();
    return *std::move(config);
  }
  static std::string Workers(const std::string& of_each) {
    std::string out = "workers:\n";
    for (int i = 0; i < 2; ++i) {
      absl::StrAppend(
          &out, "  - name: w", i, "\n    address: 127.0.0.1:", 7000 + i, "\n");
      out += of_each;
    }
    return out;
  }
  absl::StatusOr<Placing> Decide(const std::string& yaml) const {
    return DecidePlacement(Parse(yaml), *checkpoint_, caches_);
  }

  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  CacheBytes caches_;
};

TEST_F(PlacingTest, WhatTheFileStatesWins) {
  const std::string devices =
      "coordinator:\n  device: cpu-64\n" + Workers("    device: h100\n");
  EXPECT_EQ(Decide(Workers(""))->how, "by share");
  EXPECT_EQ(Decide("")->how, "all on this machine");
  EXPECT_THAT(Decide(devices)->how, HasSubstr("by the solver"));
  EXPECT_EQ(Decide(devices + "placement:\n  split: columns\n")->how,
            "by share");
  EXPECT_EQ(Decide(devices + "placement:\n  shards: 4\n")->how, "by share");
  EXPECT_EQ(Decide("coordinator:\n  device: cpu-64\n" +
                   Workers("    device: h100\n    share: 2\n"))
                ->how,
            "by share");
  const auto listed =
      Decide(devices +
             "placement:\n  explicit:\n    - holder: w1\n      slices: [{}]\n");
  EXPECT_EQ(listed->how, "as the file lists it");
  EXPECT_EQ(listed->placement.holder[0], WorkerId{1});
  // A node of which nothing is known: no solver.
  EXPECT_EQ(Decide(Workers("    device: h100\n"))->how, "by share");
}

TEST_F(PlacingTest, TheSolverMindsTheMemoryOfEachNode) {
  // The caches leave the coordinator room for nothing else.
  const auto held = planner::HeldOf(*checkpoint_)->bytes;
  const uint64_t memory = planner::DeviceOf("cpu-1")->memory_bytes;
  caches_.kv = memory - memory / 50 - caches_.state - held.embedding -
               held.dense - 2 * held.experts / 8;
  const std::string devices = "coordinator:\n  device: cpu-1\n";
  const auto placed = Decide(devices + Workers("    device: h100\n"));
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_THAT(placed->how, HasSubstr("on workers (split by"));
  caches_.kv = 4'000'000'000;
  const auto full = Decide(devices + Workers("    device: h100\n"));
  EXPECT_EQ(full.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.status().message()),
              AllOf(HasSubstr("needs 4."), HasSubstr("1.0 GB free")));
}

TEST_F(PlacingTest, MeasurementsStandForDevices) {
  const testing::TempFolder temp;
  const std::string links = (temp.path() / "links.yaml").string();
  std::ofstream(links) << "coordinator:\n  memory_gb_per_s: 10\n"
                          "  memory_free_gb: 0.02\n"
                          "workers:\n"
                          "  - name: w0\n    memory_gb_per_s: 20\n"
                          "    memory_free_gb: 8\n"
                          "  - name: w1\n    memory_gb_per_s: 20\n"
                          "    memory_free_gb: 8\n";
  caches_ = {};
  const auto placed = Decide("links: " + links + "\n" + Workers(""));
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_THAT(placed->how, HasSubstr("by the solver"));
}

TEST_F(PlacingTest, WhatDoesNotFitIsRefusedWithBothNumbers) {
  const Placement local = Decide("")->placement;
  const auto held = *planner::HeldOf(*checkpoint_);
  const uint64_t all = held.bytes.embedding + held.bytes.dense +
                       held.bytes.experts + caches_.kv + caches_.state;
  EXPECT_TRUE(
      CheckFits(*checkpoint_, local, caches_, MemoryState{all, all}).ok());
  EXPECT_TRUE(CheckFits(*checkpoint_, local, caches_, MemoryState{}).ok());
  const absl::Status status =
      CheckFits(*checkpoint_, local, caches_, MemoryState{all, all - 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("the coordinator needs"),
                    HasSubstr(" GB free (experts 0.013 GB"),
                    HasSubstr("limits.max_context")));
  // What workers hold is not the coordinator's.
  const Placement remote = Decide(Workers(""))->placement;
  EXPECT_TRUE(CheckFits(*checkpoint_,
                        remote,
                        caches_,
                        MemoryState{all, all - held.bytes.experts})
                  .ok());
}

TEST(OwnLayersTest, AreThoseOfWhichNobodyElseHasASlice) {
  const auto slice = [](int32_t layer, int32_t expert) {
    return Slice{.layer = LayerId{layer},
                 .expert = ExpertId{expert},
                 .begin = 0,
                 .end = 64};
  };
  const Placement placement{
      .shards = {{.id = ShardId{0},
                  .slices = {slice(0, 0), slice(0, 1), slice(1, 0)}},
                 {.id = ShardId{1}, .slices = {slice(1, 1), slice(2, 0)}},
                 {.id = ShardId{2}, .slices = {slice(0, 2)}}},
      .holder = {kCoordinator, WorkerId{0}, kCoordinator}};
  const std::vector<bool> own = OwnLayers(placement, 3);
  EXPECT_EQ(own, (std::vector<bool>{true, false, false}));
  const Placement rest = WithoutLayers(placement, own);
  ASSERT_EQ(rest.shards.size(), 3u);
  ASSERT_EQ(rest.shards[0].slices.size(), 1u);
  EXPECT_EQ(rest.shards[0].slices[0].layer, LayerId{1});
  EXPECT_EQ(rest.shards[1].slices.size(), 2u);
  EXPECT_TRUE(rest.shards[2].slices.empty());
  EXPECT_EQ(WithoutLayers(placement, {}).shards[0].slices.size(), 3u);
}

}  // namespace
}  // namespace conclave::cli
