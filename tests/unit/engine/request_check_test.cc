// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "coordinator/generation_config.h"

namespace conclave {
namespace {

struct Wrong {
  const char* field;
  std::function<void(GenerateRequest&)> spoil;
};

TEST(CheckRequest, NamesTheFieldThatIsWrong) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Wrong cases[] = {
      {"temperature", [](auto& r) { r.sampling.temperature = 2.1; }},
      {"temperature", [](auto& r) { r.sampling.temperature = -0.1; }},
      {"temperature", [nan](auto& r) { r.sampling.temperature = nan; }},
      {"top_p", [](auto& r) { r.sampling.top_p = 0; }},
      {"top_p", [](auto& r) { r.sampling.top_p = 1.01; }},
      {"top_k", [](auto& r) { r.sampling.top_k = -1; }},
      {"min_p", [](auto& r) { r.sampling.min_p = 1.5; }},
      {"presence_penalty", [](auto& r) { r.sampling.presence_penalty = 3; }},
      {"frequency_penalty", [](auto& r) { r.sampling.frequency_penalty = -3; }},
      {"repetition_penalty",
       [](auto& r) { r.sampling.repetition_penalty = 0; }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{900, 1.f}};
       }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{-1, 1.f}};
       }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{1, 200.f}};
       }},
      {"stop", [](auto& r) { r.stop = {""}; }},
      {"stop", [](auto& r) { r.stop = {std::string(5000, 'x')}; }},
      {"stop", [](auto& r) { r.stop.assign(17, "x"); }},
      {"max_tokens", [](auto& r) { r.max_tokens = 0; }},
      {"max_tokens", [](auto& r) { r.max_tokens = -1; }},
      {"max_tokens", [](auto& r) { r.max_tokens = 91; }},
      {"max_tokens",
       [](auto& r) { r.max_tokens = std::numeric_limits<int32_t>::max(); }},
      {"top_logprobs", [](auto& r) { r.top_logprobs = 2; }},
      {"top_logprobs",
       [](auto& r) {
         r.logprobs = true;
         r.top_logprobs = 21;
       }},
      {"echo",
       [](auto& r) {
         r.prompt = ChatPrompt();
         r.echo = true;
       }},
  };
  const RequestBounds bounds{.max_context = 100, .vocab_used = 900};
  EXPECT_TRUE(CheckRequest({}, 10, bounds).ok());
  for (const Wrong& wrong : cases) {
    GenerateRequest request;
    request.prompt = std::string("x");
    wrong.spoil(request);
    const absl::Status status = CheckRequest(request, 10, bounds);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()).rfind(wrong.field, 0), 0u)
        << wrong.field << " / " << status;
  }
}

TEST(CheckRequest, NamesThePromptThatIsTooLong) {
  const RequestBounds bounds{.max_context = 100, .vocab_used = 900};
  GenerateRequest request;
  request.prompt = std::string("x");
  const std::string text(CheckRequest(request, 101, bounds).message());
  EXPECT_EQ(text.rfind("prompt: ", 0), 0u) << text;
  EXPECT_NE(text.find("100"), std::string::npos) << text;
  EXPECT_NE(text.find("101"), std::string::npos) << text;
  request.prompt = ChatPrompt();
  const std::string chat(CheckRequest(request, 101, bounds).message());
  EXPECT_EQ(chat.rfind("messages: ", 0), 0u) << chat;
  EXPECT_FALSE(CheckRequest(request, 0, bounds).ok());
}

TEST(GenerationConfig, ReadsTheEmbeddedModels) {
  const auto got = ReadGenerationConfig("deploy/models/qwen3.5-moe-tiny");
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_DOUBLE_EQ(got->temperature, 0.6);
  EXPECT_EQ(got->top_k, 20);
  EXPECT_DOUBLE_EQ(got->top_p, 0.95);
  EXPECT_DOUBLE_EQ(got->min_p, 0);
}

}  // namespace
}  // namespace conclave
