// SPDX-License-Identifier: Apache-2.0
// The engine on a GPU in exact mode against the engine on the CPU: the same
// tokens, however they are sampled and whoever runs beside.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/model/device_needs.h"
#include "kernels/device.h"
#include "kernels/device_queue.h"
#include "tests/testing/form.h"
#include "tests/unit/engine/engine_fixture.h"
#include "tests/unit/engine/kinds_of_sampling.h"

namespace conclave {
namespace {

using testing::EngineHouse;
using testing::FindGolden;
using testing::Greedy;
using testing::ReplyPtr;

v1::Limits Eight() {
  v1::Limits limits;
  limits.set_max_sequences(8);
  limits.set_kv_tokens(16384);
  return limits;
}

std::unique_ptr<EngineHouse> OnGpu(
    testing::Form form,
    kernels::Activations activations = kernels::Activations::kF32) {
  return std::make_unique<EngineHouse>(
      Eight(), nullptr, nullptr, nullptr, form.backend, activations, form.gpu);
}

GenerateRequest Ask(const std::string& prompt, int32_t tokens) {
  GenerateRequest request = Greedy(FindGolden(prompt).ids, tokens);
  request.ignore_eos = true;
  return request;
}

class DeviceEngine : public ::testing::TestWithParam<testing::Form> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         DeviceEngine,
                         ::testing::Values(testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(DeviceEngine, OneAfterTheOtherGivesTheCpusTokens) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  EngineHouse host(Eight());
  const auto gpu = OnGpu(GetParam());
  for (const GenerateRequest& r : testing::KindsOfSampling()) {
    SCOPED_TRACE(*r.sampling.seed);
    EXPECT_EQ(gpu->Run(r)->content, host.Run(r)->content);
  }
}

TEST_P(DeviceEngine, EightAtOnceGiveTheCpusTokens) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  EngineHouse host(Eight());
  const auto gpu = OnGpu(GetParam());
  std::vector<ReplyPtr> replies;
  for (const GenerateRequest& r : testing::KindsOfSampling()) {
    // Some come while others decode: tokens are chosen here and there by turns.
    if (replies.size() % 3 == 1) replies.back()->WaitForEvents(4);
    replies.push_back(gpu->Submit(r));
  }
  const std::vector<GenerateRequest> asked = testing::KindsOfSampling();
  for (size_t i = 0; i < replies.size(); ++i) {
    replies[i]->Wait();
    EXPECT_TRUE(replies[i]->last.error.ok()) << replies[i]->last.error;
    EXPECT_EQ(replies[i]->content, host.Run(asked[i])->content) << i;
  }
}

// Chosen from logits on the host, because somebody reads them.
TEST_P(DeviceEngine, LogprobsAndBiasGiveTheCpusTokens) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  EngineHouse host(Eight());
  const auto gpu = OnGpu(GetParam());
  GenerateRequest logprobs = Ask("story", 24), bias = Ask("story", 24);
  logprobs.logprobs = true;
  logprobs.top_logprobs = 3;
  bias.sampling.logit_bias = {{11, 4.f}, {12, -4.f}};
  EXPECT_EQ(gpu->Run(bias)->content, host.Run(bias)->content);
  const ReplyPtr want = host.Run(logprobs);
  const ReplyPtr got = gpu->Run(logprobs);
  EXPECT_EQ(testing::IdsOf(*got), testing::IdsOf(*want));
  ASSERT_EQ(got->logprobs.size(), want->logprobs.size());
  for (size_t i = 0; i < got->logprobs.size(); ++i) {
    EXPECT_NEAR(*got->logprobs[i].logprob, *want->logprobs[i].logprob, 1e-3);
  }
}

TEST_P(DeviceEngine, CancelFreesWhatItHeld) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  EngineHouse host(Eight());
  const auto gpu = OnGpu(GetParam());
  RequestId id{};
  const ReplyPtr endless = gpu->Submit(Ask("len2", 16'000), &id);
  endless->WaitForEvents(3);
  gpu->engine->Cancel(id);
  // Needs blocks that the first one held.
  GenerateRequest next = Ask("len2", 16'000);
  next.stop = {"a"};
  const ReplyPtr got = gpu->Run(next);
  EXPECT_EQ(got->content, host.Run(next)->content);
  EXPECT_FALSE(endless->ended());
}

// bf16 rounds, so that tokens may differ; a seed is still reproducible.
TEST_P(DeviceEngine, SeedsAreReproducibleInBf16) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto gpu = OnGpu(GetParam(), kernels::Activations::kInt8);
  GenerateRequest request = Ask("story", 40);
  request.sampling.temperature = 1.2;
  request.sampling.seed = 7;
  const std::string first = gpu->Run(request)->content;
  EXPECT_EQ(gpu->Run(request)->content, first);
  EXPECT_TRUE(gpu->engine->Lost().ok());
}

// Of one slot, all layers.
int64_t RecurrentNumbers() {
  const checkpoint::ModelConfig& c = testing::TinyModel().config();
  const int64_t layers =
      std::count(c.full_attention.begin(), c.full_attention.end(), false);
  return layers * c.linear_num_value_heads * c.linear_value_head_dim *
         c.linear_key_head_dim;
}

TEST_P(DeviceEngine, NeedsAreKnownBeforeLoading) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  int64_t slot_bytes[2][2] = {};
  for (const auto& [exact, rounded] : {std::pair(false, false),
                                       std::pair(false, true),
                                       std::pair(true, false),
                                       std::pair(true, true)}) {
    const auto gdn =
        rounded ? kernels::GdnDType::kBF16 : kernels::GdnDType::kF32;
    const auto queue = kernels::DeviceQueue::Create(GetParam().gpu);
    ASSERT_TRUE(queue.ok()) << queue.status();
    const auto needs = model::DeviceNeedsOf(
        testing::TinyModel(),
        queue->get(),
        {.rows_max = 2056, .sequences_max = 8, .exact = exact, .gdn = gdn});
    ASSERT_TRUE(needs.ok()) << needs.status();
    const auto decoder = model::Decoder::Create(
        testing::TinyModel(),
        nullptr,
        kernels::Backend::kCuda,
        nullptr,
        {.kv_blocks = 64, .state_slots = 8, .step_rows = 2056},
        exact ? kernels::Activations::kF32 : kernels::Activations::kInt8,
        {.gpu = GetParam().gpu,
         .gdn = gdn,
         .progress = nullptr,
         .routed_here = {}});
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    EXPECT_EQ(needs->weights,
              (*decoder)->dense_bytes() + (*decoder)->expert_bytes());
    const model::StateBytes each = (*decoder)->state_bytes();
    EXPECT_EQ(needs->each.per_kv_block, each.per_kv_block);
    EXPECT_EQ(needs->each.per_state_slot, each.per_state_slot);
    EXPECT_GT(needs->arrays, 0u);
    slot_bytes[exact][rounded] = each.per_state_slot;
  }
  // Two bytes less for each number of a recurrent state; convolution rows stay
  // float32, and so does all in exact mode.
  EXPECT_EQ(slot_bytes[0][0] - slot_bytes[0][1], RecurrentNumbers() * 2);
  EXPECT_EQ(slot_bytes[1][0], slot_bytes[0][0]);
  EXPECT_EQ(slot_bytes[1][1], slot_bytes[0][0]);
}

}  // namespace
}  // namespace conclave
