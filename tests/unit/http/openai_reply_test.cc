// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/openai_reply.h"

#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "boost/json/parse.hpp"
#include "boost/json/value.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

ReplyHead Head(bool chat) {
  ReplyHead head;
  head.id = "x-1";
  head.created = 17;
  head.model = "tiny";
  head.chat = chat;
  return head;
}

TokenLogprob Scored(std::string bytes, float logprob, int32_t offset) {
  TokenLogprob out;
  out.bytes = std::move(bytes);
  out.logprob = logprob;
  out.text_offset = offset;
  return out;
}

TEST(OpenAiReplyTest, SumsUpAChat) {
  Choice choice;
  TokenEvent event;
  event.reasoning = "Hm. ";
  Append(event, &choice);
  event = {};
  event.tool_calls.push_back({0, "c1", "f", ""});
  Append(event, &choice);
  event = {};
  event.tool_calls.push_back({0, "", "", "{\"a\""});
  event.tool_calls.push_back({0, "", "", ":1}"});
  event.tool_calls.push_back({1, "c2", "g", ""});
  event.finish = FinishReason::kToolCalls;
  event.prompt_tokens = 10;
  event.completion_tokens = 5;
  event.reasoning_tokens = 2;
  Append(event, &choice);

  EXPECT_EQ(json::parse(FullReply(Head(true), {choice})), json::parse(R"(
    {"id": "x-1", "object": "chat.completion", "created": 17, "model": "tiny",
     "choices": [{"index": 0, "message": {"role": "assistant",
       "content": null, "reasoning_content": "Hm. ", "tool_calls": [
        {"id": "c1", "type": "function",
         "function": {"name": "f", "arguments": "{\"a\":1}"}},
        {"id": "c2", "type": "function",
         "function": {"name": "g", "arguments": ""}}]},
       "logprobs": null, "finish_reason": "tool_calls"}],
     "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
       "completion_tokens_details": {"reasoning_tokens": 2}}})"));
}

TEST(OpenAiReplyTest, WritesChunks) {
  ReplyHead head = Head(true);
  TokenEvent event;
  EXPECT_EQ(DeltaChunk(head, 0, event, false), "");
  event.content = "a\"\n";
  event.tool_calls.push_back({1, "c", "f", ""});
  event.tool_calls.push_back({1, "", "", "{"});
  EXPECT_EQ(json::parse(DeltaChunk(head, 0, event, false)), json::parse(R"(
    {"id": "x-1", "object": "chat.completion.chunk", "created": 17,
     "model": "tiny", "choices": [{"index": 0, "delta": {"content": "a\"\n",
       "tool_calls": [{"index": 1, "id": "c", "type": "function",
         "function": {"name": "f", "arguments": ""}},
         {"index": 1, "function": {"arguments": "{"}}]},
       "logprobs": null, "finish_reason": null}]})"));
  head.include_usage = true;
  EXPECT_EQ(json::parse(FinishChunk(head, 2, FinishReason::kLength)),
            json::parse(R"(
    {"id": "x-1", "object": "chat.completion.chunk", "created": 17,
     "model": "tiny", "choices": [{"index": 2, "delta": {},
       "logprobs": null, "finish_reason": "length"}], "usage": null})"));
  EXPECT_EQ(DeltaChunk(head, 0, event, false).find('\n'), std::string::npos);
}

TEST(OpenAiReplyTest, WritesChatLogprobs) {
  Choice choice;
  choice.wants_logprobs = true;
  TokenLogprob token = Scored("\xc3", -0.5f, 0);
  token.top = {{7, -0.5f}, {8, -std::numeric_limits<float>::infinity()}};
  token.top_bytes = {"\xc3", "b"};
  choice.logprobs = {token};
  const json::value reply = json::parse(FullReply(Head(true), {choice}));
  EXPECT_EQ(reply.at("choices").at(0).at("logprobs"), json::parse(R"(
    {"content": [{"token": "\ufffd", "logprob": -0.5, "bytes": [195],
      "top_logprobs": [
        {"token": "\ufffd", "logprob": -0.5, "bytes": [195]},
        {"token": "b", "logprob": -9999.0, "bytes": [98]}]}]})"));
}

TEST(OpenAiReplyTest, WritesCompletionLogprobs) {
  Choice choice;
  choice.wants_logprobs = true;
  choice.content = "ab";
  choice.finish = FinishReason::kLength;
  TokenLogprob first;
  first.bytes = "a";
  TokenLogprob second = Scored("b", -3.0f, 1);
  second.top = {{1, -0.25f}};
  second.top_bytes = {"c"};
  choice.logprobs = {first, second};
  const json::value reply = json::parse(FullReply(Head(false), {choice}));
  EXPECT_EQ(reply.at("choices"), json::parse(R"(
    [{"index": 0, "text": "ab", "finish_reason": "length", "logprobs":
      {"tokens": ["a", "b"], "token_logprobs": [null, -3.0],
       "top_logprobs": [null, {"c": -0.25, "b": -3.0}],
       "text_offset": [0, 1]}}])"));
}

TEST(OpenAiReplyTest, ShapesErrors) {
  EXPECT_EQ(json::parse(ErrorJson(
                absl::InvalidArgumentError("max_tokens: too many"), 400)),
            json::parse(R"({"error": {"message": "max_tokens: too many",
              "type": "invalid_request_error", "param": "max_tokens",
              "code": null}})"));
  EXPECT_EQ(
      json::parse(ErrorJson(absl::UnavailableError("exchange: w1 is gone"),
                            503,
                            /*numeric_code=*/true)),
      json::parse(R"({"error": {"message": "exchange: w1 is gone",
              "type": "server_error", "param": null, "code": 503}})"));
  EXPECT_EQ(json::parse(ErrorJson(absl::NotFoundError("model: no"), 404))
                .at("error")
                .at("code"),
            "model_not_found");
}

}  // namespace
}  // namespace conclave::http
