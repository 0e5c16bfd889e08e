// SPDX-License-Identifier: Apache-2.0
#include "coordinator/engine.h"

#include <gtest/gtest.h>

#include <cmath>

#include "coordinator/sample/sampler.h"
#include "tests/unit/engine/engine_fixture.h"

namespace conclave {
namespace {

using testing::EngineHouse;
using testing::FindGolden;
using testing::GoldenPrompt;
using testing::Greedy;
using testing::IdsOf;
using testing::ReplyPtr;

TEST(Engine, SeedsAreReproducibleInAnyCompany) {
  EngineHouse house;
  const auto request = [](uint64_t seed) {
    GenerateRequest out;
    out.prompt = FindGolden("story").ids;
    out.sampling.temperature = 1.5;
    out.sampling.seed = seed;
    out.max_tokens = 32;
    out.ignore_eos = true;
    out.logprobs = true;
    return out;
  };
  const std::vector<int32_t> first = IdsOf(*house.Run(request(7)));
  std::vector<ReplyPtr> company;
  for (uint64_t seed = 1; seed < 5; ++seed) {
    company.push_back(house.Submit(request(seed)));
  }
  EXPECT_EQ(IdsOf(*house.Run(request(7))), first);
  for (const ReplyPtr& other : company) {
    other->Wait();
    EXPECT_NE(IdsOf(*other), first);
  }
}

TEST(Engine, ScoresThePromptAsTheReferenceDoes) {
  EngineHouse house;
  const GoldenPrompt& prompt = FindGolden("len65");
  GenerateRequest request = Greedy(prompt.ids, 0);
  request.echo = true;
  request.logprobs = true;
  request.top_logprobs = 3;
  const ReplyPtr reply = house.Run(std::move(request));
  EXPECT_EQ(reply->content, prompt.text);
  EXPECT_EQ(reply->last.finish, FinishReason::kLength);
  EXPECT_EQ(reply->last.completion_tokens, 0);
  ASSERT_EQ(IdsOf(*reply), prompt.ids);
  EXPECT_FALSE(reply->logprobs[0].logprob.has_value());
  const std::vector<float> logits =
      testing::GoldenTensors("len65").Floats("logits");
  const size_t vocab = 2048;
  int32_t compared = 0;
  for (size_t i = 1; i < prompt.ids.size(); ++i) {
    const TokenLogprob& got = reply->logprobs[i];
    ASSERT_TRUE(got.logprob.has_value());
    ASSERT_EQ(got.top.size(), 3u);
    EXPECT_GE(got.top[0].second, got.top[1].second);
    const int32_t row = static_cast<int32_t>(i) - 1 - prompt.logits_from;
    if (row < 0) continue;
    const float* x = logits.data() + row * vocab;
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(double{x[v]});
    EXPECT_NEAR(*got.logprob, x[prompt.ids[i]] - std::log(sum), 2e-4) << i;
    ++compared;
  }
  EXPECT_EQ(compared,
            static_cast<int32_t>(prompt.ids.size()) - 1 - prompt.logits_from);
}

TEST(Engine, EchoAndReplyAgreeWithASecondPass) {
  EngineHouse house;
  const std::vector<int32_t> prompt = FindGolden("len2").ids;
  GenerateRequest first = Greedy(prompt, 6);
  first.echo = true;
  first.logprobs = true;
  first.ignore_eos = true;
  const ReplyPtr a = house.Run(std::move(first));
  const std::vector<int32_t> all = IdsOf(*a);
  ASSERT_EQ(all.size(), prompt.size() + 6);
  GenerateRequest second = Greedy(all, 0);
  second.echo = true;
  second.logprobs = true;
  const ReplyPtr b = house.Run(std::move(second));
  ASSERT_EQ(IdsOf(*b), all);
  for (size_t i = 1; i < all.size(); ++i) {
    EXPECT_NEAR(*a->logprobs[i].logprob, *b->logprobs[i].logprob, 1e-3) << i;
  }
}

TEST(Engine, EndsAtAStopStringAcrossTokens) {
  EngineHouse house;
  const std::string whole =
      house.Run(Greedy(FindGolden("story").ids, 64))->content;
  ASSERT_GT(whole.size(), 30u);
  // Begins and ends in the middle of words.
  const std::string stop = whole.substr(11, 9);
  GenerateRequest request = Greedy(FindGolden("story").ids, 64);
  request.stop = {stop, "never said"};
  const ReplyPtr reply = house.Run(std::move(request));
  EXPECT_EQ(reply->content, whole.substr(0, whole.find(stop)));
  EXPECT_EQ(reply->last.finish, FinishReason::kStop);
}

TEST(Engine, CancelFreesBlocks) {
  EngineHouse house;
  RequestId id{};
  GenerateRequest request = Greedy(FindGolden("len2").ids, 2000);
  request.ignore_eos = true;
  const ReplyPtr reply = house.Submit(std::move(request), &id);
  reply->WaitForEvents(3);
  EXPECT_GT(house.Metric("conclave_kv_blocks_used"), 0);
  house.engine->Cancel(id);
  house.engine->Cancel(RequestId{99999});
  // Needs blocks that the first one held.
  GenerateRequest next = Greedy(FindGolden("len2").ids, 4000);
  next.stop = {"a"};
  house.Run(std::move(next));
  const int events = reply->events();
  house.Run(Greedy(FindGolden("len2").ids, 2));
  EXPECT_FALSE(reply->ended());
  EXPECT_EQ(reply->events(), events);
  EXPECT_EQ(house.Metric("conclave_requests_total{outcome=\"cancelled\"}"), 1);
}

TEST(Engine, TheQueueHasALimitAndShutdownEndsAll) {
  v1::Limits limits;
  limits.set_max_sequences(1);
  limits.set_max_queue(2);
  std::vector<ReplyPtr> replies;
  {
    EngineHouse house(limits);
    GenerateRequest request = Greedy(FindGolden("len2").ids, 3000);
    request.ignore_eos = true;
    for (int i = 0; i < 3; ++i) replies.push_back(house.Submit(request));
    const auto refused = house.TrySubmit(request);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  }
  for (const ReplyPtr& reply : replies) {
    ASSERT_TRUE(reply->ended());
    EXPECT_EQ(reply->last.error.code(), absl::StatusCode::kCancelled);
  }
}

TEST(Engine, EndsARequestAtItsDeadline) {
  EngineHouse house;
  GenerateRequest request = Greedy(FindGolden("len2").ids, 4000);
  request.ignore_eos = true;
  request.deadline = house.clock.Now() + absl::Seconds(3);
  const ReplyPtr reply = house.Submit(std::move(request));
  reply->WaitForEvents(2);
  EXPECT_FALSE(reply->ended());
  house.clock.Advance(absl::Seconds(4));
  reply->Wait();
  EXPECT_EQ(reply->last.error.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(Engine, RefusesWhatCanNeverFitAndCutsWhatWasNotAsked) {
  v1::Limits limits;
  limits.set_kv_tokens(128);
  EngineHouse house(limits);
  const auto big = house.TrySubmit(Greedy(FindGolden("len2").ids, 500));
  EXPECT_EQ(big.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(big.status().message(),
            "max_tokens: prompt and reply may take 502 tokens, the KV cache "
            "holds 128");
  GenerateRequest open = Greedy(FindGolden("len2").ids, 1);
  open.max_tokens.reset();
  open.ignore_eos = true;
  EXPECT_EQ(house.Run(open)->last.completion_tokens, 126);
  open.prompt = FindGolden("len129").ids;
  const auto prompt = house.TrySubmit(open);
  EXPECT_EQ(prompt.status().message().substr(0, 7), "prompt:");
}

TEST(Engine, SoftSwitchesDecideUnlessTheRequestDoes) {
  EngineHouse house;
  const auto ask = [&](const char* text, std::optional<bool> thinking) {
    ChatPrompt chat;
    chat.messages = {{.role = "user",
                      .content = text,
                      .reasoning_content = {},
                      .tool_calls = {}}};
    chat.enable_thinking = thinking;
    GenerateRequest request = Greedy(chat, 200);
    request.parse_reply = true;
    return house.Run(std::move(request));
  };
  const ReplyPtr off = ask("/no_think What is 47 + 38?", {});
  EXPECT_EQ(off->reasoning, "");
  EXPECT_NE(off->content.find("85"), std::string::npos) << off->content;
  const ReplyPtr on = ask("What is 47 + 38?", {});
  EXPECT_NE(on->reasoning, "");
  EXPECT_GT(on->last.reasoning_tokens, 0);
  EXPECT_NE(on->content.find("85"), std::string::npos) << on->content;
  EXPECT_EQ(ask("/no_think What is 47 + 38?", true)->reasoning, on->reasoning);
}

}  // namespace
}  // namespace conclave
