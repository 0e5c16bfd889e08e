// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace conclave {

// What a client asked for; immutable once submitted. The HTTP layer fills it,
// the engine checks it (InvalidArgument messages start with the JSON field's
// name: "max_tokens: ...").

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments_json;  // an object
};

struct Message {
  std::string role;  // system, user, assistant, tool
  std::string content;
  std::optional<std::string> reasoning_content;
  std::vector<ToolCall> tool_calls;
};

struct Tool {
  std::string name;
  std::string json;             // the whole object as given, one line
  std::string parameters_json;  // its JSON schema, "{}" if absent
};

// /v1/chat/completions. `enable_thinking` unset: the soft switches or the
// template's default (on) decide.
struct ChatPrompt {
  std::vector<Message> messages;
  std::vector<Tool> tools;
  std::optional<bool> enable_thinking;
  bool tool_choice_none = false;
};

// /v1/completions with text, or with token ids.
using Prompt = std::variant<ChatPrompt, std::string, std::vector<int32_t>>;

struct SamplingParams {
  double temperature = 1.0;  // 0 = greedy
  int32_t top_k = 0;         // 0 = off
  double top_p = 1.0;
  double min_p = 0.0;
  double presence_penalty = 0.0;    // over generated tokens
  double frequency_penalty = 0.0;   // over generated tokens
  double repetition_penalty = 1.0;  // over prompt and generated tokens
  std::optional<uint64_t> seed;
  std::vector<std::pair<int32_t, float>> logit_bias;
};

struct GenerateRequest {
  RequestId id{};
  Prompt prompt;
  SamplingParams sampling;
  std::optional<int32_t> max_tokens;  // unset: to the context's end
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool logprobs = false;
  int32_t top_logprobs = 0;
  bool echo = false;         // completions: the prompt's tokens come first
  bool parse_reply = false;  // chat: split reasoning and tool calls
  std::optional<absl::Time> deadline;
};

struct TokenLogprob {
  int32_t id = 0;
  std::string bytes;             // of the token, may be no valid UTF-8
  std::optional<float> logprob;  // unset for the first prompt token
  std::vector<std::pair<int32_t, float>> top;  // (id, logprob), descending
  std::vector<std::string> top_bytes;
  int32_t text_offset = 0;  // characters before it in the reply's text
};

// A piece of a tool call: the first piece of an index carries id and name.
struct ToolCallDelta {
  int32_t index = 0;
  std::string id;
  std::string name;
  std::string arguments;  // appended to what came before
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kToolCalls };

// One event of a reply, in order. The last has finish != kNone or an error.
struct TokenEvent {
  std::string content;
  std::string reasoning;
  std::vector<ToolCallDelta> tool_calls;
  std::vector<TokenLogprob> logprobs;
  FinishReason finish = FinishReason::kNone;
  absl::Status error;  // not OK: the reply ends here
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t reasoning_tokens = 0;
};

}  // namespace conclave
