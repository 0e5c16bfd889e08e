// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/schedule/request.h"

namespace conclave::http {

// What every object of one reply carries.
struct ReplyHead {
  std::string id;       // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;  // seconds since 1970
  std::string model;
  bool chat = true;
  bool include_usage = false;  // chunks then carry "usage": null
};

// One choice of a reply, summed up over its events.
struct Choice {
  std::string content;
  std::string reasoning;
  std::vector<ToolCall> tool_calls;
  std::vector<TokenLogprob> logprobs;
  bool wants_logprobs = false;
  FinishReason finish = FinishReason::kNone;
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t reasoning_tokens = 0;
};
void Append(const TokenEvent& event, Choice* choice);

// OpenAI's JSON, one line each. Pure.
std::string FullReply(const ReplyHead& head,
                      const std::vector<Choice>& choices);

// Chunks of a stream. RoleChunk: chat only, first of a choice. DeltaChunk:
// empty when the event brings nothing to show. FinishChunk: last of a choice.
std::string RoleChunk(const ReplyHead& head, int32_t index);
std::string DeltaChunk(const ReplyHead& head,
                       int32_t index,
                       const TokenEvent& event,
                       bool wants_logprobs);
std::string FinishChunk(const ReplyHead& head,
                        int32_t index,
                        FinishReason finish);
std::string UsageChunk(const ReplyHead& head,
                       const std::vector<Choice>& choices);

// {"error": {"message", "type", "param", "code"}}. The code is OpenAI's word
// where it has one; numeric: the HTTP status, for errors inside a stream.
std::string ErrorJson(const absl::Status& status,
                      int http_status,
                      bool numeric_code = false);

std::string ModelJson(const ReplyHead& head, int32_t max_context);
std::string ModelListJson(const ReplyHead& head, int32_t max_context);
std::string HealthJson(const absl::Status& status,
                       int32_t running,
                       int32_t waiting);

}  // namespace conclave::http
