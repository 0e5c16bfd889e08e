// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/openai_reply.h"

#include <utility>

#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"
#include "boost/json/value.hpp"
#include "coordinator/http/openai_logprobs.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

json::value FinishWord(FinishReason finish) {
  switch (finish) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kToolCalls:
      return "tool_calls";
    case FinishReason::kNone:
      break;
  }
  return nullptr;
}

json::object Head(const ReplyHead& head, bool chunk) {
  json::object out;
  out["id"] = head.id;
  out["object"] = !head.chat ? "text_completion"
                  : chunk    ? "chat.completion.chunk"
                             : "chat.completion";
  out["created"] = head.created;
  out["model"] = head.model;
  return out;
}

json::object Usage(const std::vector<Choice>& choices) {
  int64_t prompt = 0, completion = 0, reasoning = 0;
  for (const Choice& choice : choices) {
    prompt += choice.prompt_tokens;
    completion += choice.completion_tokens;
    reasoning += choice.reasoning_tokens;
  }
  json::object details;
  details["reasoning_tokens"] = reasoning;
  json::object out;
  out["prompt_tokens"] = prompt;
  out["completion_tokens"] = completion;
  out["total_tokens"] = prompt + completion;
  out["completion_tokens_details"] = std::move(details);
  return out;
}

json::value Logprobs(const ReplyHead& head,
                     const std::vector<TokenLogprob>& logprobs,
                     bool wanted) {
  if (!wanted) return nullptr;
  return head.chat ? ChatLogprobs(logprobs) : CompletionLogprobs(logprobs);
}

json::object ChatMessage(const Choice& choice) {
  json::object out;
  out["role"] = "assistant";
  out["content"] = choice.content;
  if (choice.content.empty() && !choice.tool_calls.empty()) {
    out["content"] = nullptr;
  }
  out["reasoning_content"] = nullptr;
  if (!choice.reasoning.empty()) out["reasoning_content"] = choice.reasoning;
  if (choice.tool_calls.empty()) return out;
  json::array calls;
  for (const ToolCall& call : choice.tool_calls) {
    json::object function;
    function["name"] = call.name;
    function["arguments"] = call.arguments_json;
    json::object one;
    one["id"] = call.id;
    one["type"] = "function";
    one["function"] = std::move(function);
    calls.push_back(std::move(one));
  }
  out["tool_calls"] = std::move(calls);
  return out;
}

json::array CallDeltas(const std::vector<ToolCallDelta>& deltas) {
  json::array out;
  for (const ToolCallDelta& delta : deltas) {
    json::object function;
    if (!delta.name.empty()) function["name"] = delta.name;
    function["arguments"] = delta.arguments;
    json::object one;
    one["index"] = delta.index;
    if (!delta.id.empty()) {
      one["id"] = delta.id;
      one["type"] = "function";
    }
    one["function"] = std::move(function);
    out.push_back(std::move(one));
  }
  return out;
}

std::string Chunk(const ReplyHead& head, json::object choice, int32_t index) {
  json::object out = Head(head, true);
  choice["index"] = index;
  out["choices"] = json::array{std::move(choice)};
  if (head.include_usage) out["usage"] = nullptr;
  return json::serialize(out);
}

}  // namespace

void Append(const TokenEvent& event, Choice* choice) {
  choice->content += event.content;
  choice->reasoning += event.reasoning;
  for (const ToolCallDelta& delta : event.tool_calls) {
    const auto index = static_cast<size_t>(delta.index);
    if (choice->tool_calls.size() <= index) {
      choice->tool_calls.resize(index + 1);
    }
    ToolCall& call = choice->tool_calls[index];
    call.id += delta.id;
    call.name += delta.name;
    call.arguments_json += delta.arguments;
  }
  choice->logprobs.insert(
      choice->logprobs.end(), event.logprobs.begin(), event.logprobs.end());
  if (event.finish != FinishReason::kNone) choice->finish = event.finish;
  choice->prompt_tokens = event.prompt_tokens;
  choice->completion_tokens = event.completion_tokens;
  choice->reasoning_tokens = event.reasoning_tokens;
}

std::string FullReply(const ReplyHead& head,
                      const std::vector<Choice>& choices) {
  json::object out = Head(head, false);
  json::array list;
  for (const Choice& choice : choices) {
    json::object one;
    one["index"] = list.size();
    if (head.chat) {
      one["message"] = ChatMessage(choice);
    } else {
      one["text"] = choice.content;
    }
    one["logprobs"] = Logprobs(head, choice.logprobs, choice.wants_logprobs);
    one["finish_reason"] = FinishWord(choice.finish);
    list.push_back(std::move(one));
  }
  out["choices"] = std::move(list);
  out["usage"] = Usage(choices);
  return json::serialize(out);
}

std::string RoleChunk(const ReplyHead& head, int32_t index) {
  json::object delta;
  delta["role"] = "assistant";
  delta["content"] = "";
  json::object choice;
  choice["delta"] = std::move(delta);
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = nullptr;
  return Chunk(head, std::move(choice), index);
}

std::string DeltaChunk(const ReplyHead& head,
                       int32_t index,
                       const TokenEvent& event,
                       bool wants_logprobs) {
  const bool logprobs = wants_logprobs && !event.logprobs.empty();
  if (event.content.empty() && event.reasoning.empty() &&
      event.tool_calls.empty() && !logprobs) {
    return "";
  }
  json::object choice;
  if (head.chat) {
    json::object delta;
    if (!event.reasoning.empty()) delta["reasoning_content"] = event.reasoning;
    if (!event.content.empty()) delta["content"] = event.content;
    if (!event.tool_calls.empty()) {
      delta["tool_calls"] = CallDeltas(event.tool_calls);
    }
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = event.content;
  }
  choice["logprobs"] = Logprobs(head, event.logprobs, logprobs);
  choice["finish_reason"] = nullptr;
  return Chunk(head, std::move(choice), index);
}

std::string FinishChunk(const ReplyHead& head,
                        int32_t index,
                        FinishReason finish) {
  json::object choice;
  if (head.chat) {
    choice["delta"] = json::object();
  } else {
    choice["text"] = "";
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = FinishWord(finish);
  return Chunk(head, std::move(choice), index);
}

std::string UsageChunk(const ReplyHead& head,
                       const std::vector<Choice>& choices) {
  json::object out = Head(head, true);
  out["choices"] = json::array();
  out["usage"] = Usage(choices);
  return json::serialize(out);
}

}  // namespace conclave::http
