// SPDX-License-Identifier: Apache-2.0

// What `conclave plan` says a load will hold is what it then holds, to the
// byte, in every format and for every node.

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/shard_weights.h"
#include "coordinator/model/weights.h"
#include "coordinator/planner/plan.h"

namespace conclave::parity {
namespace {

constexpr const char* kFormats[] = {"bf16-per-expert",
                                    "fp8",
                                    "gptq-int4",
                                    "mlx-mixed",
                                    "mlx3",
                                    "mlx4",
                                    "mlx5",
                                    "mlx6",
                                    "mlx8"};

class Resident : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto opened = checkpoint::Checkpoint::Open(GetParam());
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
    auto held = planner::HeldOf(*checkpoint_);
    ASSERT_TRUE(held.ok()) << held.status();
    held_ = *std::move(held);
  }

  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  planner::HeldWeights held_;
};

TEST_P(Resident, DenseWeightsAreWhatThePlanSays) {
  const auto dense = model::LoadDenseWeights(*checkpoint_);
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_EQ(dense->bytes(), held_.bytes.embedding + held_.bytes.dense);
}

TEST_P(Resident, EveryNodeHoldsWhatThePlanSays) {
  planner::Request r;
  r.shape = checkpoint_->config();
  r.held = held_;
  r.context = 128;
  r.nodes = *planner::ParseNodes("cpu,h100,m3-ultra-96");
  for (planner::Node& node : r.nodes) node.link.round_trip_s = 0;
  // Room for three layers of experts at home, so that all kinds occur.
  const planner::Plan empty = *planner::EmptyPlan(r);
  r.nodes[0].memory_bytes = empty.nodes[0].Used() + held_.Experts(0, 3);
  auto plan = planner::MakePlan(r);
  ASSERT_TRUE(plan.ok()) << plan.status();
  if (plan->remote_layers == 0) GTEST_FAIL() << "all of it fits at home";
  const Placement placement = planner::PlacementOf(r, *plan);
  ASSERT_TRUE(Validate(placement, r.shape.expert_shape()).ok())
      << Validate(placement, r.shape.expert_shape());
  std::vector<uint64_t> loaded(r.nodes.size());
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    const auto shard =
        checkpoint::LoadShard(*checkpoint_, placement.shards[i], nullptr);
    ASSERT_TRUE(shard.ok()) << shard.status();
    loaded[static_cast<size_t>(Index(placement.holder[i]) + 1)] += shard->bytes;
  }
  for (size_t i = 0; i < loaded.size(); ++i) {
    EXPECT_EQ(loaded[i], plan->nodes[i].experts) << plan->nodes[i].node;
  }
  // The same placement, taken as given.
  const auto again = planner::PlanOf(r, placement);
  ASSERT_TRUE(again.ok());
  for (size_t i = 0; i < loaded.size(); ++i) {
    EXPECT_EQ(again->nodes[i].experts, loaded[i]);
  }
}

std::vector<std::string> Folders() {
  std::vector<std::string> out = {"deploy/models/qwen3.5-moe-tiny"};
  for (const char* source : {"tiny", "random"}) {
    for (const char* format : kFormats) {
      out.push_back(absl::StrCat("build/formats/", source, "/", format));
    }
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Formats,
                         Resident,
                         ::testing::ValuesIn(Folders()),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) {
                               c = '_';
                             }
                           }
                           return name;
                         });

}  // namespace
}  // namespace conclave::parity
