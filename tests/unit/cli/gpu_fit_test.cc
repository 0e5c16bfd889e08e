// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/gpu_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/config/cluster_config.h"
#include "common/limits.h"
#include "tests/testing/golden.h"

namespace conclave::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kGb = 1'000'000'000;
constexpr MemoryState kMemory{.total_bytes = 80 * kGb, .free_bytes = 79 * kGb};
// A KV block of 1 MB, a state of 100 MB.
constexpr model::DeviceNeeds kNeeds{
    .weights = 60 * kGb,
    .arrays = 2 * kGb,
    .each = {.per_kv_block = 1'000'000, .per_state_slot = 100'000'000}};

v1::Limits LimitsOf(int32_t max_context) {
  v1::Limits limits = config::DefaultClusterConfig().limits();
  limits.set_max_context(max_context);
  limits.set_step_tokens(2048);
  return limits;
}

absl::StatusOr<model::StateSizes> Fit(
    const v1::Limits& limits, const model::DeviceNeeds& needs = kNeeds) {
  return FitOnGpu(
      needs, limits, testing::TinyModel().config(), "GPU 0 (H100)", kMemory);
}

TEST(GpuFit, KeysAndValuesGetWhatIsLeft) {
  // 79 - 60 - 2 - 1.6 (states) - 1.5 (kept free), less one block.
  const auto sizes = Fit(LimitsOf(32768));
  ASSERT_TRUE(sizes.ok()) << sizes.status();
  EXPECT_EQ(sizes->kv_blocks, 16 * 512);  // a context for each
  EXPECT_EQ(sizes->state_slots, 16);
  EXPECT_EQ(sizes->step_rows, 2048 + 16);
  model::DeviceNeeds more = kNeeds;
  more.weights = 70 * kGb;
  EXPECT_EQ(Fit(LimitsOf(32768), more)->kv_blocks, 3899);
}

TEST(GpuFit, WhatTheFileSaysIsKept) {
  v1::Limits limits = LimitsOf(32768);
  limits.set_kv_tokens(64 * 1000);
  EXPECT_EQ(Fit(limits)->kv_blocks, 1000);
  limits.set_kv_tokens(64 * 20'000);
  EXPECT_EQ(Fit(limits).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(GpuFit, RefusesWithBothNumbers) {
  model::DeviceNeeds more = kNeeds;
  more.weights = 75 * kGb;
  const absl::Status status = Fit(LimitsOf(32768), more).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  // One context of 512 blocks.
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("needs 80.6 GB on GPU 0 (H100), 79.0 GB free"),
                    HasSubstr("weights 75.0 GB"),
                    HasSubstr("keys and values 0.513 GB"),
                    HasSubstr("states 1.6"),
                    HasSubstr("arrays of a step 2.0"),
                    HasSubstr("coordinator.gdn_state to bf16")));
}

}  // namespace
}  // namespace conclave::cli
