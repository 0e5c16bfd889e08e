// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/openai.h"

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::http {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

ParseOptions Options() {
  ParseOptions options;
  options.model = "tiny";
  options.defaults.temperature = 0.6;
  options.defaults.top_k = 20;
  return options;
}

absl::StatusOr<ApiRequest> Chat(const std::string& fields) {
  return ParseChatRequest(
      absl::StrCat(R"({"model": "tiny", "messages": [{"role": "user",
                       "content": "hi"}])",
                   fields.empty() ? "" : ", ",
                   fields,
                   "}"),
      Options());
}

absl::StatusOr<ApiRequest> Complete(const std::string& fields) {
  return ParseCompletionRequest("{" + fields + "}", Options());
}

std::string Why(const absl::StatusOr<ApiRequest>& parsed) {
  return std::string(parsed.status().message());
}

const ChatPrompt& ChatOf(const ApiRequest& request) {
  return std::get<ChatPrompt>(request.requests.at(0).prompt);
}

TEST(ParseChatTest, ReadsEveryField) {
  auto parsed = Chat(R"("stream": true,
      "stream_options": {"include_usage": true},
      "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1,
      "presence_penalty": -1, "frequency_penalty": 1.5,
      "repetition_penalty": 1.1, "seed": 42, "logit_bias": {"17": -100},
      "stop": ["a", "b"], "max_completion_tokens": 9, "ignore_eos": true,
      "logprobs": true, "top_logprobs": 3, "user": "me", "n": 1,
      "chat_template_kwargs": {"enable_thinking": false},
      "tool_choice": "none", "parallel_tool_calls": false, "store": false,
      "metadata": {"a": "b"}, "service_tier": "auto",
      "response_format": {"type": "text"}, "modalities": ["text"])");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->stream);
  EXPECT_TRUE(parsed->include_usage);
  const GenerateRequest& request = parsed->requests.at(0);
  EXPECT_EQ(request.sampling.temperature, 0);
  EXPECT_EQ(request.sampling.top_p, 0.5);
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_EQ(request.sampling.min_p, 0.1);
  EXPECT_EQ(request.sampling.presence_penalty, -1);
  EXPECT_EQ(request.sampling.frequency_penalty, 1.5);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.1);
  EXPECT_EQ(request.sampling.seed, 42u);
  EXPECT_THAT(request.sampling.logit_bias,
              ElementsAre(std::pair<int32_t, float>(17, -100.0f)));
  EXPECT_THAT(request.stop, ElementsAre("a", "b"));
  EXPECT_EQ(request.max_tokens, 9);
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_TRUE(request.logprobs);
  EXPECT_EQ(request.top_logprobs, 3);
  EXPECT_TRUE(request.parse_reply);
  EXPECT_EQ(ChatOf(*parsed).enable_thinking, false);
  EXPECT_TRUE(ChatOf(*parsed).tool_choice_none);
}

TEST(ParseChatTest, TakesDefaultsFromTheModel) {
  auto parsed = Chat("\"top_p\": null");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const GenerateRequest& request = parsed->requests.at(0);
  EXPECT_EQ(request.sampling.temperature, 0.6);
  EXPECT_EQ(request.sampling.top_k, 20);
  EXPECT_EQ(request.sampling.top_p, 1.0);
  EXPECT_FALSE(request.sampling.seed.has_value());
  EXPECT_FALSE(request.max_tokens.has_value());
  EXPECT_FALSE(ChatOf(*parsed).enable_thinking.has_value());
}

TEST(ParseChatTest, ReadsMessagesOfEveryKind) {
  auto parsed = ParseChatRequest(R"({"messages": [
      {"role": "developer", "content": "Be kind."},
      {"role": "user", "content": [{"type": "text", "text": "It "},
                                   {"type": "text", "text": "rains?"}]},
      {"role": "assistant", "content": null, "reasoning_content": "Hm.",
       "refusal": null, "tool_calls": [{"id": "c1", "type": "function",
        "function": {"name": "look", "arguments": "{\"a\": 1.0}"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "no"}],
      "tools": [{"type": "function", "function": {"name": "look",
        "description": "Looks.", "parameters": {"type": "object"}}}]})",
                                 Options());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const ChatPrompt& chat = ChatOf(*parsed);
  ASSERT_EQ(chat.messages.size(), 4u);
  EXPECT_EQ(chat.messages[0].role, "system");
  EXPECT_EQ(chat.messages[1].content, "It rains?");
  EXPECT_EQ(chat.messages[2].reasoning_content, "Hm.");
  EXPECT_EQ(chat.messages[2].tool_calls.at(0).name, "look");
  EXPECT_EQ(chat.messages[2].tool_calls.at(0).arguments_json, "{\"a\": 1.0}");
  EXPECT_EQ(chat.messages[3].role, "tool");
  ASSERT_EQ(chat.tools.size(), 1u);
  EXPECT_EQ(chat.tools[0].name, "look");
  EXPECT_EQ(chat.tools[0].parameters_json, "{\"type\":\"object\"}");
  EXPECT_THAT(chat.tools[0].json, StartsWith("{\"type\":\"function\""));
}

TEST(ParseChatTest, NamesEveryWrongField) {
  const std::pair<const char*, const char*> cases[] = {
      {"\"temperature\": 3", "temperature: must be from 0 to 2, not 3"},
      {"\"temperature\": \"hot\"", "temperature: must be a number"},
      {"\"top_p\": 0", "top_p: must be over 0"},
      {"\"top_k\": 1.5", "top_k: must be an integer"},
      {"\"n\": 2", "n: must be from 1 to 1"},
      {"\"stop\": [\"\"]", "stop: "},
      {"\"stop\": 3", "stop: "},
      {"\"seed\": \"x\"", "seed: must be an integer"},
      {"\"logit_bias\": {\"x\": 1}", "logit_bias: \"x\" is no token id"},
      {"\"logit_bias\": {\"5\": 101}", "logit_bias.5: must be from -100"},
      {"\"max_tokens\": 0", "max_tokens: must be from 1"},
      {"\"max_tokens\": 1, \"max_completion_tokens\": 2",
       "max_completion_tokens: contradicts max_tokens"},
      {"\"top_logprobs\": 2", "top_logprobs: only with logprobs: true"},
      {"\"logprobs\": true, \"top_logprobs\": 21", "top_logprobs: must be"},
      {"\"logprobs\": 1", "logprobs: must be true or false"},
      {"\"stream\": 1", "stream: must be true or false"},
      {"\"stream_options\": {}", "stream_options: only with stream: true"},
      {"\"stream\": true, \"stream_options\": {\"x\": 1}",
       "stream_options.x: unknown field"},
      {"\"tool_choice\": \"required\"", "tool_choice: only"},
      {"\"tool_choice\": {\"type\": \"function\"}", "tool_choice: only"},
      {"\"tools\": {}", "tools: must be a list"},
      {"\"tools\": [{\"type\": \"function\"}]", "tools[0]: must be"},
      {"\"tools\": [{\"type\": \"function\", \"function\": {}}]",
       "tools[0].function.name: is missing"},
      {"\"response_format\": {\"type\": \"json_object\"}", "response_format: "},
      {"\"chat_template_kwargs\": {\"foo\": 1}",
       "chat_template_kwargs.foo: unknown field"},
      {"\"chat_template_kwargs\": {\"enable_thinking\": 1}",
       "chat_template_kwargs.enable_thinking: must be true or false"},
      {"\"reasoning_effort\": \"low\"", "reasoning_effort: use"},
      {"\"functions\": []", "functions: use tools"},
      {"\"frobnicate\": 1", "frobnicate: unknown field"},
  };
  for (const auto& [fields, message] : cases) {
    const auto parsed = Chat(fields);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument)
        << fields;
    EXPECT_THAT(Why(parsed), StartsWith(message)) << fields;
  }
}

TEST(ParseChatTest, NamesEveryWrongMessage) {
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "messages: must be a list of at least one message"},
      {"null", "messages: must be a list"},
      {"[3]", "messages[0]: must be an object"},
      {"[{\"content\": \"x\"}]", "messages[0].role: is missing"},
      {"[{\"role\": \"king\", \"content\": \"x\"}]", "messages[0].role: must"},
      {"[{\"role\": \"user\"}]", "messages[0].content: is missing"},
      {"[{\"role\": \"user\", \"content\": 1}]", "messages[0].content: must"},
      {"[{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", "
       "\"image_url\": {}}]}]",
       "messages[0].content[0]: a part of type \"image_url\""},
      {"[{\"role\": \"user\", \"content\": \"x\", \"colour\": 1}]",
       "messages[0].colour: unknown field"},
      {"[{\"role\": \"user\", \"content\": \"x\", "
       "\"reasoning_content\": \"y\"}]",
       "messages[0].reasoning_content: only assistant"},
      {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": "
       "{\"name\": \"f\", \"arguments\": \"{\"}}]}]",
       "messages[0].tool_calls[0].function.arguments: byte 1"},
      {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": "
       "{\"name\": \"f\", \"arguments\": \"[1]\"}}]}]",
       "messages[0].tool_calls[0].function.arguments: must hold"},
  };
  for (const auto& [messages, message] : cases) {
    const auto parsed = ParseChatRequest(
        absl::StrCat("{\"messages\": ", messages, "}"), Options());
    EXPECT_THAT(Why(parsed), StartsWith(message)) << messages;
  }
}

TEST(ParseChatTest, AnotherModelIsNotFound) {
  const auto parsed = ParseChatRequest(
      R"({"model": "gpt", "messages": [{"role": "user", "content": "x"}]})",
      Options());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Why(parsed), HasSubstr("model: 'gpt' does not exist"));
}

TEST(ParseCompletionTest, TakesEveryFormOfPrompt) {
  auto parsed = Complete("\"prompt\": \"Once\"");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(std::get<std::string>(parsed->requests.at(0).prompt), "Once");
  EXPECT_EQ(parsed->requests[0].max_tokens, kCompletionTokensDefault);
  EXPECT_FALSE(parsed->requests[0].parse_reply);

  parsed = Complete("\"prompt\": [5, 6, 7]");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(std::get<std::vector<int32_t>>(parsed->requests.at(0).prompt),
              ElementsAre(5, 6, 7));

  parsed = Complete("\"prompt\": [[5], [6, 7]]");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->requests.size(), 2u);
  EXPECT_THAT(std::get<std::vector<int32_t>>(parsed->requests[1].prompt),
              ElementsAre(6, 7));

  parsed = Complete("\"prompt\": [\"a\", \"b\", \"c\"]");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->requests.size(), 3u);
  EXPECT_EQ(std::get<std::string>(parsed->requests[2].prompt), "c");
}

TEST(ParseCompletionTest, ScoresText) {
  auto parsed = Complete(
      "\"prompt\": [1, 2], \"echo\": true, \"max_tokens\": 0, \"logprobs\": 1");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const GenerateRequest& request = parsed->requests.at(0);
  EXPECT_TRUE(request.echo);
  EXPECT_EQ(request.max_tokens, 0);
  EXPECT_TRUE(request.logprobs);
  EXPECT_EQ(request.top_logprobs, 1);
}

TEST(ParseCompletionTest, NamesEveryWrongField) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "prompt: is missing"},
      {"\"prompt\": {}", "prompt: must be"},
      {"\"prompt\": []", "prompt: must be"},
      {"\"prompt\": [1, -2]", "prompt[0]: must be"},
      {"\"prompt\": [\"a\", 3.5]", "prompt[1]: must be"},
      {"\"prompt\": \"a\", \"max_tokens\": 0", "max_tokens: 0 makes sense"},
      {"\"prompt\": \"a\", \"max_tokens\": -1", "max_tokens: must be from 0"},
      {"\"prompt\": \"a\", \"logprobs\": true", "logprobs: must be an integer"},
      {"\"prompt\": \"a\", \"suffix\": \"b\"", "suffix: "},
      {"\"prompt\": \"a\", \"best_of\": 2", "best_of: must be"},
      {"\"prompt\": \"a\", \"messages\": []", "messages: unknown field"},
  };
  for (const auto& [fields, message] : cases) {
    EXPECT_THAT(Why(Complete(fields)), StartsWith(message)) << fields;
  }
  EXPECT_THAT(Why(ParseCompletionRequest("[]", Options())),
              StartsWith("body: must be a JSON object"));
}

}  // namespace
}  // namespace conclave::http
