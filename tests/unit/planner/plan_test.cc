// SPDX-License-Identifier: Apache-2.0
#include "coordinator/planner/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <numeric>
#include <string>

#include "coordinator/planner/predict.h"
#include "tests/testing/seeded.h"

namespace conclave::planner {
namespace {

using ::testing::HasSubstr;

Request Ask(std::string_view shape,
            std::string_view format,
            std::string_view nodes) {
  Request r;
  r.shape = *ShapeOf(shape);
  r.format = *ParseFormat(format);
  r.nodes = *ParseNodes(nodes);
  return r;
}

TEST(Devices, AListOfNodes) {
  const auto nodes = *ParseNodes("h200,2xm3-ultra-96,rtx-pro-6000,cpu-16");
  ASSERT_EQ(nodes.size(), 5u);
  EXPECT_EQ(nodes[0].name, "h200");
  EXPECT_EQ(nodes[1].name, "m3-ultra-96#0");
  EXPECT_EQ(nodes[2].name, "m3-ultra-96#1");
  EXPECT_EQ(nodes[2].memory_bytes, uint64_t{72} << 30);
  EXPECT_EQ(nodes[3].device, "rtx-pro-6000");
  for (const char* bad : {"",
                          "h300",
                          "0xh200",
                          "999xh200",
                          "h200,",
                          "h200-x",
                          "m3-ultra-0",
                          "xh200",
                          "99999999999xcpu"}) {
    EXPECT_FALSE(ParseNodes(bad).ok()) << bad;
  }
  EXPECT_THAT(std::string(ParseNodes("h300").status().message()),
              HasSubstr("m3-ultra"));
}

// docs/exchange-and-kernels 7.3: 467 expected, with bf16 state.
TEST(Plan, OneGpuHoldsThe122b) {
  Request r = Ask("122b-a10b", "mlx4", "h200");
  r.state_element_bytes = 2;
  const auto plan = MakePlan(r);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->local_layers, 48);
  EXPECT_EQ(plan->split, Split::kNone);
  EXPECT_NEAR(plan->decode_tokens_per_s, 467, 47);
  EXPECT_EQ(plan->step.exchange, 0);
}

// Section 7.4: H200 and four Macs, gRPC over 10GbE (+150 us): 134 tokens/s, of
// 60 layers 37 at home.
TEST(Plan, WholeLayersStayLocalFirst) {
  Request r = Ask("397b-a17b", "mlx4", "h200,4xm3-ultra-96");
  r.state_element_bytes = 2;
  const auto plan = MakePlan(r);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_NEAR(plan->local_layers, 37, 2);
  EXPECT_EQ(plan->split, Split::kColumns);
  EXPECT_NEAR(plan->decode_tokens_per_s, 134, 20);
  for (size_t i = 1; i <= 4; ++i) EXPECT_EQ(plan->nodes[i].units, 4);
}

TEST(Plan, WhatDoesNotFitSaysBothNumbers) {
  const auto home = MakePlan(Ask("397b-a17b", "bf16", "m4-max-16"));
  EXPECT_EQ(home.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(home.status().message()),
              AllOf(HasSubstr("coordinator m4-max-16"),
                    HasSubstr("needs"),
                    HasSubstr("GB free")));
  const auto experts = MakePlan(Ask("397b-a17b", "mlx4", "h100,rtx-4090"));
  EXPECT_EQ(experts.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(experts.status().message()),
              AllOf(HasSubstr("on 2 nodes"), HasSubstr("GB free")));
}

TEST(Plan, FasterNodesGetMoreWithinTheirMemory) {
  const auto plan = MakePlan(
      Ask("397b-a17b", "mlx4", "h100,m3-ultra-512,m4-max-128,rtx-pro-6000"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  int32_t units = 0;
  for (const Holding& h : plan->nodes) {
    EXPECT_LE(h.Used(), h.memory) << h.node;
    units += h.units;
  }
  EXPECT_EQ(units, plan->split == Split::kColumns ? 1024 / 64 : 512);
  EXPECT_GE(plan->nodes[1].units, plan->nodes[2].units);
  EXPECT_GT(plan->nodes[3].units, plan->nodes[2].units);
}

// A group of columns is wider than the whole expert.
TEST(Plan, ExpertsNarrowerThanAGroupStayWhole) {
  for (const char* format : {"bf16", "fp8", "gptq-int4", "mlx4", "mlx8"}) {
    Request r = Ask("35b-a3b", format, "cpu-256,2xh200");
    r.shape.moe_intermediate_size = 64;
    const auto plan = MakePlan(r);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(ColumnMultiple(r.shape, r.format),
              r.format == WeightFormat::kBf16 ? 16 : 64);
  }
}

TEST(Plan, SlowCoordinatorsKeepNoLayers) {
  const auto plan = MakePlan(Ask("35b-a3b", "mlx4", "cpu-256,h200"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->local_layers, 0);
  const auto mac = MakePlan(Ask("35b-a3b", "mlx4", "h200,cpu-256"));
  EXPECT_EQ(mac->local_layers, 40);
}

TEST(Plan, MoreContextMovesLayersAway) {
  Request r = Ask("397b-a17b", "mlx4", "h200,4xm3-ultra-96");
  const int32_t before = MakePlan(r)->local_layers;
  r.sequences = 32;
  const auto plan = MakePlan(r);
  EXPECT_LT(plan->local_layers, before);
  EXPECT_EQ(plan->local_layers + plan->remote_layers, 60);
}

TEST(Plan, SaysWhereFewerNodesAreFaster) {
  // A slow node behind a slow link only costs.
  Request r = Ask("35b-a3b", "mlx4", "h200,cpu");
  auto by_workers = DecodeByWorkers(r);
  ASSERT_EQ(by_workers.size(), 2u);
  EXPECT_GT(by_workers[0], 0);
  r = Ask("397b-a17b", "mlx4", "h100,2xm3-ultra-256,cpu-128");
  by_workers = DecodeByWorkers(r);
  EXPECT_EQ(by_workers[0], 0);  // does not fit
  EXPECT_GT(by_workers[2], by_workers[1]);
}

// As slices: each held once, and as many bytes as the plan says.
void ExpectCovered(const Request& r, const Plan& plan) {
  uint64_t experts = 0;
  for (const Holding& h : plan.nodes) {
    EXPECT_LE(h.Used(), h.memory) << h.node;
    experts += h.experts;
  }
  EXPECT_EQ(experts, ResidentBytes(r.shape, r.format).experts);
  const Placement placement = PlacementOf(r, plan);
  ExpertShape shape = r.shape.expert_shape();
  shape.column_multiple = ColumnMultiple(r.shape, r.format);
  const absl::Status valid = Validate(placement, shape);
  ASSERT_TRUE(valid.ok()) << valid;
  const auto placed = PlanOf(r, placement);
  ASSERT_TRUE(placed.ok()) << placed.status();
  for (size_t i = 0; i < plan.nodes.size(); ++i) {
    EXPECT_EQ(placed->nodes[i].experts, plan.nodes[i].experts);
  }
}

// Even shares of the workers with any number of layers on the coordinator:
// returns how many of these fit.
int ExpectNoRoundRobinIsFaster(const Request& r, const Plan& plan) {
  int compared = 0;
  const size_t workers = r.nodes.size() - 1;
  for (const Split split : {Split::kColumns, Split::kExperts}) {
    const int32_t all =
        split == Split::kExperts
            ? r.shape.num_experts
            : r.shape.moe_intermediate_size / ColumnMultiple(r.shape, r.format);
    const auto each = all / static_cast<int32_t>(workers);
    std::vector<int32_t> shares(workers, each);
    for (size_t i = 0; i < all % workers; ++i) ++shares[i];
    for (int32_t local = 0; local <= r.shape.num_hidden_layers; ++local) {
      const auto even = PlanWith(r, {split, local}, shares);
      if (!even.ok()) continue;
      ++compared;
      EXPECT_LE(plan.step.Total(), even->step.Total() * (1 + 1e-9))
          << local << " layers at home";
    }
  }
  return compared;
}

// Each unit is dealt out once, memory is kept, and no round robin that fits
// beats the solver by the solver's own measure.
TEST(Plan, NeverWorseThanRoundRobin) {
  testing::Seeded random(11);
  const char* const kDevices[] = {"m3-ultra-96",
                                  "m3-ultra-256",
                                  "m4-max-64",
                                  "rtx-4090",
                                  "rtx-pro-6000",
                                  "cpu-256",
                                  "m2-ultra-192",
                                  "h100"};
  int plans = 0, compared = 0;
  for (int round = 0; round < 100; ++round) {
    std::string nodes = "h100";
    const int32_t workers = 1 + random.Int(8);
    for (int32_t i = 0; i < workers; ++i) {
      nodes += std::string(",") + kDevices[random.Int(8)];
    }
    Request r = Ask("397b-a17b", random.Int(2) == 0 ? "mlx4" : "fp8", nodes);
    r.sequences = 1 + random.Int(4);
    SCOPED_TRACE(nodes);
    const auto plan = MakePlan(r);
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
      continue;
    }
    ++plans;
    ExpectCovered(r, *plan);
    if (ExpectNoRoundRobinIsFaster(r, *plan) > 0) ++compared;
  }
  std::cout << plans << " plans, " << compared << " beside round robin\n";
  EXPECT_GT(plans, 50);
  EXPECT_GT(compared, 20);
}

TEST(Predict, DistinctExpertsAreThoseOfTheTable) {
  const auto shape = *ShapeOf("397b-a17b");
  EXPECT_NEAR(DistinctExperts(shape, 8), 74.7, 0.1);
  EXPECT_NEAR(DistinctExperts(shape, 128), 471.0, 0.1);
}

}  // namespace
}  // namespace conclave::planner
