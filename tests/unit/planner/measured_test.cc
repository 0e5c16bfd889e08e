// SPDX-License-Identifier: Apache-2.0
// Plans from measurements, and plans that a placement is.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "coordinator/planner/plan.h"

namespace conclave::planner {
namespace {

constexpr double kMs = 1e-3;

Request Ask(std::string_view nodes) {
  Request r;
  r.shape = *ShapeOf("35b-a3b");
  r.format = WeightFormat::kBf16;
  r.nodes = *ParseNodes(nodes);
  return r;
}

// Each of `holders` has one shard: an equal part of the experts of all layers
// from `first` on; the layers before are the coordinator's.
Placement Deal(const Request& r, int32_t holders, int32_t first) {
  Placement placement;
  const int32_t experts = r.shape.num_experts;
  for (int32_t h = first > 0 ? -1 : 0; h < holders; ++h) {
    Shard& shard = placement.shards.emplace_back();
    shard.id = static_cast<ShardId>(placement.shards.size() - 1);
    placement.holder.push_back(h < 0 ? kCoordinator : static_cast<WorkerId>(h));
    const int32_t begin = h < 0 ? 0 : h * experts / holders;
    const int32_t end = h < 0 ? experts : (h + 1) * experts / holders;
    for (int32_t layer = h < 0 ? 0 : first;
         layer < (h < 0 ? first : r.shape.num_hidden_layers);
         ++layer) {
      for (int32_t expert = begin; expert < end; ++expert) {
        shard.slices.push_back({static_cast<LayerId>(layer),
                                static_cast<ExpertId>(expert),
                                0,
                                r.shape.moe_intermediate_size});
      }
    }
  }
  return placement;
}

// What the solver makes of a plan and what the same placement is are one.
TEST(PlanOf, AgreesWithTheSolver) {
  const Request r = Ask("cpu-256,4xcpu-256");
  for (const int32_t local : {0, 10, 40}) {
    const auto solved = PlanWith(r, {Split::kExperts, local}, {64, 64, 64, 64});
    ASSERT_TRUE(solved.ok()) << solved.status();
    Placement placement = Deal(r, 4, local);
    const auto placed = PlanOf(r, placement);
    ASSERT_TRUE(placed.ok()) << placed.status();
    EXPECT_EQ(placed->local_layers, local);
    EXPECT_EQ(placed->remote_layers, 40 - local);
    EXPECT_NEAR(placed->step.Total(), solved->step.Total(), 1e-9);
    EXPECT_NEAR(placed->prefill_tokens_per_s,
                solved->prefill_tokens_per_s,
                1e-6 * solved->prefill_tokens_per_s);
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_NEAR(static_cast<double>(placed->nodes[i].Used()),
                  static_cast<double>(solved->nodes[i].Used()),
                  1e3);
    }
  }
}

TEST(PlanOf, SaysWhatDoesNotFitByItsNumbers) {
  Request r = Ask("cpu-256,cpu-8");
  const auto plan = PlanOf(r, Deal(r, 1, 0));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->nodes[1].Used(), plan->nodes[1].memory);
  r.nodes.pop_back();
  EXPECT_EQ(PlanOf(r, Deal(r, 1, 0)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Measured, StepsReplaceTheModelOfTheCoordinator) {
  Request r = Ask("cpu-256,2xcpu-256");
  r.home.steps = {{1, 10 * kMs, 0, 0}, {9, 26 * kMs, 0, 0}};
  const Placement placement = Deal(r, 2, 0);
  for (const auto& [sequences, ms] :
       {std::pair{1, 10.0}, {5, 18.0}, {9, 26.0}, {17, 42.0}}) {
    r.sequences = sequences;
    const auto plan = PlanOf(r, placement);
    EXPECT_NEAR(plan->step.weights, ms * kMs, 1e-9) << sequences;
    EXPECT_EQ(plan->step.fixed, 0);
  }
}

// By hand: 40 layers, rows of 2048 x 2 bytes.
TEST(Measured, ExchangesAndExpertsByHand) {
  Request r = Ask("cpu-256,2xcpu-256");
  r.home.steps = {{1, 10 * kMs, 0, 0}};
  for (size_t i = 1; i <= 2; ++i) {
    r.nodes[i].link = {.round_trip_s = 1 * kMs * static_cast<double>(i),
                       .bytes_per_s = 4096e3,
                       .back_bytes_per_s = 2048e3};
    r.nodes[i].experts = {.call_s = 5 * kMs, .bytes_per_s = 1e18};
  }
  const Placement placement = Deal(r, 2, 0);
  // Of 8 experts at least one is on either side, nearly always.
  const double part = 1 - 1.0 / 256;
  // The slower round trip; 2 x 1 ms out and 2 x 2 ms back one after the other.
  auto plan = PlanOf(r, placement);
  EXPECT_NEAR(plan->step.exchange, 40 * (2 + 6 * part) * kMs, 1e-6);
  EXPECT_NEAR(plan->step.experts, 40 * 5 * kMs, 1e-6);
  // Both ports carry everything at once: only the slowest link counts.
  r.home.all_out_bytes_per_s = 8192e3;
  r.home.all_back_bytes_per_s = 4096e3;
  plan = PlanOf(r, placement);
  EXPECT_NEAR(plan->step.exchange, 40 * (2 + 3 * part) * kMs, 1e-6);
  // Each worker costs half a millisecond more in the midst of a step.
  r.home.steps[0].fan_out = 0.5 * kMs;
  plan = PlanOf(r, placement);
  EXPECT_NEAR(plan->step.exchange, 40 * (3 + 3 * part) * kMs, 1e-6);
  // The shared expert hides 1 ms of each exchange.
  r.home.steps[0].overlap = 40 * kMs;
  plan = PlanOf(r, placement);
  EXPECT_NEAR(plan->step.exchange, 40 * (2 + 3 * part) * kMs, 1e-6);
  EXPECT_NEAR(plan->step.experts, 40 * 5 * kMs, 1e-6);
}

TEST(Measured, FurtherRowsOfAnExpertCostTheirShare) {
  Request r = Ask("cpu-256,cpu-256");
  r.nodes[1].experts = {.call_s = 0, .bytes_per_s = 1e9, .row_share = 0};
  r.sequences = 64;
  const Placement placement = Deal(r, 1, 0);
  const double before = PlanOf(r, placement)->step.experts;
  r.nodes[1].experts.row_share = 1;
  const double after = PlanOf(r, placement)->step.experts;
  // 64 x 8 rows on 256 (1 - (1 - 8/256)^64) = 222 experts.
  EXPECT_NEAR(after / before, 512 / 222.4, 0.01);
}

}  // namespace
}  // namespace conclave::planner
