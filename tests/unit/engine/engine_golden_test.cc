// SPDX-License-Identifier: Apache-2.0

// The reference's tokens through the whole engine. Apart from engine_test, for
// the thread sanitizer is too slow for long prompts.

#include <gtest/gtest.h>

#include "tests/unit/engine/engine_fixture.h"

namespace conclave {
namespace {

using testing::EngineHouse;
using testing::FindGolden;
using testing::GoldenPrompt;
using testing::GoldenPrompts;
using testing::Greedy;
using testing::IdsOf;
using testing::ReplyPtr;

// The reference's tokens without the end token, which shows no logprobs.
std::vector<int32_t> Wanted(const GoldenPrompt& prompt) {
  std::vector<int32_t> out = prompt.greedy_until_eos();
  if (prompt.eos_at) out.pop_back();
  return out;
}

GenerateRequest GoldenRequest(const GoldenPrompt& prompt) {
  GenerateRequest request = Greedy(prompt.ids, 64);
  request.logprobs = true;
  return request;
}

TEST(EngineGolden, GivesTheReferencesTokensAloneAndTogether) {
  EngineHouse alone;
  for (const GoldenPrompt& prompt : GoldenPrompts()) {
    SCOPED_TRACE(prompt.name);
    const ReplyPtr reply = alone.Run(GoldenRequest(prompt));
    EXPECT_EQ(IdsOf(*reply), Wanted(prompt));
    EXPECT_EQ(reply->last.finish,
              prompt.eos_at ? FinishReason::kStop : FinishReason::kLength);
    EXPECT_EQ(reply->last.prompt_tokens,
              static_cast<int32_t>(prompt.ids.size()));
    EXPECT_EQ(reply->last.completion_tokens,
              static_cast<int32_t>(prompt.greedy_until_eos().size()));
  }
  v1::Limits limits;
  limits.set_max_sequences(8);
  limits.set_kv_tokens(16384);
  EngineHouse together(limits);
  std::vector<ReplyPtr> replies;
  for (const GoldenPrompt& prompt : GoldenPrompts()) {
    replies.push_back(together.Submit(GoldenRequest(prompt)));
  }
  for (size_t i = 0; i < replies.size(); ++i) {
    SCOPED_TRACE(GoldenPrompts()[i].name);
    replies[i]->Wait();
    EXPECT_EQ(IdsOf(*replies[i]), Wanted(GoldenPrompts()[i]));
  }
}

TEST(EngineGolden, TheBudgetDoesNotChangeABit) {
  std::vector<std::vector<float>> values;
  std::vector<std::string> texts;
  for (const int32_t budget : {64, 128, 512}) {
    v1::Limits limits;
    limits.set_step_tokens(budget);
    EngineHouse house(limits);
    GenerateRequest request = Greedy(FindGolden("tool_answer").ids, 16);
    request.logprobs = true;
    request.top_logprobs = 5;
    const ReplyPtr company = house.Submit(Greedy(FindGolden("len129").ids, 24));
    const ReplyPtr reply = house.Run(std::move(request));
    company->Wait();
    std::vector<float> bits;
    for (const TokenLogprob& l : reply->logprobs) {
      bits.push_back(*l.logprob);
      for (const auto& [id, value] : l.top) bits.push_back(value);
    }
    values.push_back(std::move(bits));
    texts.push_back(reply->content);
  }
  EXPECT_FALSE(values[0].empty());
  EXPECT_EQ(values[0], values[1]);
  EXPECT_EQ(values[0], values[2]);
  EXPECT_EQ(texts[0], texts[1]);
  EXPECT_EQ(texts[0], texts[2]);
}

}  // namespace
}  // namespace conclave
