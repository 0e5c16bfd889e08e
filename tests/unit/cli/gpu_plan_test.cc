// SPDX-License-Identifier: Apache-2.0
// What serve plans for GPUs of made-up sizes: arrays are the plain twin's.
#include "coordinator/cli/gpu_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/config/cluster_config.h"
#include "coordinator/model/device_needs.h"
#include "kernels/device.h"
#include "tests/testing/form.h"
#include "tests/testing/golden.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;

class GpuPlanning : public ::testing::Test {
 protected:
  void SetUp() override {
    CONCLAVE_REQUIRE_FORM(testing::kTwinForm);
    config_ = config::DefaultClusterConfig();
    config_.mutable_limits()->set_max_sequences(2);
    config_.mutable_limits()->set_step_tokens(64);
    config_.mutable_limits()->set_max_context(1024);
  }

  // Bytes free on each; of no total, so that nothing is kept free.
  absl::StatusOr<GpuPlan> Plan(const std::vector<uint64_t>& free) {
    std::vector<GpuPlace> places;
    for (const uint64_t bytes : free) {
      auto queue = kernels::DeviceQueue::Create(kernels::kHostDevice);
      EXPECT_TRUE(queue.ok()) << queue.status();
      places.push_back({.name = "GPU " + std::to_string(places.size()),
                        .memory = {.total_bytes = 0, .free_bytes = bytes},
                        .queue = *std::move(queue)});
    }
    return PlanOn(places,
                  {.config = &config_, .checkpoint = &testing::TinyModel()});
  }
  v1::Coordinator& coordinator() { return *config_.mutable_coordinator(); }
  // Of the routed experts' columns, of which the model has four units.
  static uint64_t UnitBytes() {
    auto queue = kernels::DeviceQueue::Create(kernels::kHostDevice);
    const auto needs =
        model::DeviceNeedsOf(testing::TinyModel(),
                             queue->get(),
                             {.rows_max = 66, .sequences_max = 2});
    return needs->experts / 4;
  }

  v1::ClusterConfig config_;
};

constexpr uint64_t kMuch = uint64_t{1} << 30;

TEST_F(GpuPlanning, SymmetricSharesAreEven) {
  const auto plan = Plan({kMuch, 2 * kMuch});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->gpus, "GPU 0 and GPU 1");
  EXPECT_TRUE(plan->shares.empty());
  EXPECT_EQ(plan->uneven, "");
  EXPECT_EQ(plan->caches.kv_blocks, 2 * 16);  // a context for each
}

// All weights are divided, or the same on both; rank 0 has room for all logits
// and for choosing tokens, rank 1 for its half of them.
TEST_F(GpuPlanning, TheHeadIsDivided) {
  constexpr int32_t kRows = 66, kSequences = 2;
  auto queue = kernels::DeviceQueue::Create(kernels::kHostDevice);
  std::vector<model::DeviceNeeds> needs;
  for (int32_t rank = 0; rank < 2; ++rank) {
    const auto each =
        model::DeviceNeedsOf(testing::TinyModel(),
                             queue->get(),
                             {.rows_max = kRows,
                              .sequences_max = kSequences,
                              .rank = {.rank = rank, .ranks = 2}});
    ASSERT_TRUE(each.ok()) << each.status();
    needs.push_back(*each);
  }
  EXPECT_EQ(needs[0].weights, needs[1].weights);
  const auto vocab =
      static_cast<uint64_t>(testing::TinyModel().config().vocab_size);
  const uint64_t half = (kRows + 1) * vocab / 2 * sizeof(float);
  const uint64_t counts = (kSequences + 1) * vocab * sizeof(int32_t);
  EXPECT_GE(needs[0].arrays, needs[1].arrays + half + counts);
  // Rank 1 has room for its half of the logits.
  EXPECT_LT(needs[0].arrays, needs[1].arrays + 2 * half + counts);
}

TEST_F(GpuPlanning, LoneSharesGoByMemory) {
  coordinator().set_group_form("lone");
  config_.mutable_limits()->set_kv_tokens(64);
  const uint64_t unit = UnitBytes();
  auto plan = Plan({kMuch, kMuch + 8 * unit});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->shares, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(plan->uneven,
            "of 64 columns of each expert: 16 on rank 0 (GPU 0), 48 on rank 1 "
            "(GPU 1)\n");
  plan = Plan({kMuch + 8 * unit, kMuch});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->shares, (std::vector<int32_t>{3, 1}));
}

// What rank 0 has more to hold weighs some five units: then the GPUs are
// equally full, and a cache on top takes columns off rank 0.
TEST_F(GpuPlanning, LoneSharesMakeRoomForTheCache) {
  coordinator().set_group_form("lone");
  const uint64_t unit = UnitBytes();
  config_.mutable_limits()->set_kv_tokens(64);
  auto plan = Plan({kMuch + 5 * unit, kMuch});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->shares, (std::vector<int32_t>{2, 2}));
  EXPECT_EQ(plan->uneven, "");
  config_.mutable_limits()->set_kv_tokens(64 * 100);
  plan = Plan({kMuch + 5 * unit, kMuch});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->shares, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(plan->caches.kv_blocks, 100);
}

TEST_F(GpuPlanning, TheFilesSharesAreKept) {
  for (const char* form : {"symmetric", "lone"}) {
    coordinator().set_group_form(form);
    coordinator().mutable_group_shares()->Clear();
    coordinator().add_group_shares(30);
    coordinator().add_group_shares(10);
    const auto plan = Plan({kMuch, kMuch});
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->shares, (std::vector<int32_t>{30, 10}));
    EXPECT_THAT(plan->uneven, HasSubstr("48 on rank 0 (GPU 0), 16 on rank 1"));
  }
}

TEST_F(GpuPlanning, SaysWhichRankIsTooSmallAndForWhat) {
  coordinator().add_group_shares(3);
  coordinator().add_group_shares(1);
  const auto plan = Plan({kMuch, 1000});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(plan.status().message()),
      ::testing::AllOf(HasSubstr(" on GPU 1, "),
                       HasSubstr("or change coordinator.group_shares, 3,1")));
  coordinator().add_group_shares(1);
  EXPECT_THAT(std::string(Plan({kMuch, kMuch}).status().message()),
              HasSubstr("shares 3,1,1 of 2 GPUs; give one for each"));
}

}  // namespace
}  // namespace conclave::cli
