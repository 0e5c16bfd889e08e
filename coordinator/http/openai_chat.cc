// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "boost/json/object.hpp"
#include "boost/json/value.hpp"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/http/field_reader.h"
#include "coordinator/http/json_text.h"
#include "coordinator/http/openai.h"
#include "coordinator/http/openai_fields.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

// max_tokens and its newer name: either, or both alike.
void ReadLength(FieldReader& fields, GenerateRequest* request) {
  int64_t old_name = 0, new_name = 0;
  const bool has_old =
      fields.ReadInteger("max_tokens", 1, INT32_MAX, &old_name);
  const bool has_new =
      fields.ReadInteger("max_completion_tokens", 1, INT32_MAX, &new_name);
  if (has_old && has_new && old_name != new_name) {
    fields.Fail("max_completion_tokens", "contradicts max_tokens");
  }
  if (has_old) request->max_tokens = static_cast<int32_t>(old_name);
  if (has_new) request->max_tokens = static_cast<int32_t>(new_name);
}

void ReadThinking(FieldReader& fields, ChatPrompt* prompt) {
  const json::value* kwargs = fields.Find("chat_template_kwargs");
  if (kwargs == nullptr) return;
  if (!kwargs->is_object()) {
    return fields.Fail("chat_template_kwargs", "must be an object");
  }
  FieldReader inner(kwargs->get_object(), "chat_template_kwargs");
  bool thinking = true;
  if (inner.Read("enable_thinking", &thinking)) {
    prompt->enable_thinking = thinking;
  }
  fields.Fail(inner.Finish());
}

void ReadToolChoice(FieldReader& fields, ChatPrompt* prompt) {
  const json::value* choice = fields.Find("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_string() && choice->get_string() == "none") {
    prompt->tool_choice_none = true;
  } else if (!choice->is_string() || choice->get_string() != "auto") {
    fields.Fail("tool_choice",
                "only \"auto\" and \"none\" are supported; this server cannot "
                "force a call yet");
  }
}

void ReadLogprobs(FieldReader& fields, GenerateRequest* request) {
  fields.Read("logprobs", &request->logprobs);
  int64_t top = 0;
  if (fields.ReadInteger("top_logprobs", 0, limits::kTopLogprobsMax, &top)) {
    if (!request->logprobs) {
      fields.Fail("top_logprobs", "only with logprobs: true");
    }
    request->top_logprobs = static_cast<int32_t>(top);
  }
}

void ReadFormat(FieldReader& fields) {
  const json::value* format = fields.Find("response_format");
  if (format != nullptr) {
    const json::value* type = format->is_object()
                                  ? format->get_object().if_contains("type")
                                  : nullptr;
    if (type == nullptr || !type->is_string() || type->get_string() != "text") {
      fields.Fail("response_format",
                  "only {\"type\": \"text\"} is supported by this server");
    }
  }
  const json::value* modalities = fields.Find("modalities");
  if (modalities != nullptr && *modalities != json::array{"text"}) {
    fields.Fail("modalities", "only [\"text\"] is supported");
  }
  bool parallel = true;
  fields.Read("parallel_tool_calls", &parallel);
  fields.Refuse("functions", "use tools instead");
  fields.Refuse("function_call", "use tool_choice instead");
  fields.Refuse("audio", "this server answers with text only");
  fields.Refuse("reasoning_effort",
                "use chat_template_kwargs: {\"enable_thinking\": ...}");
  fields.Refuse("enable_thinking", "belongs into chat_template_kwargs");
  fields.Refuse("echo", "belongs to /v1/completions");
}

}  // namespace

absl::StatusOr<ApiRequest> ParseChatRequest(std::string_view body,
                                            const ParseOptions& options) {
  ASSIGN_OR_RETURN(const json::value root, ParseJson(body, "body"));
  if (!root.is_object()) {
    return absl::InvalidArgumentError("body: must be a JSON object");
  }
  ApiRequest out;
  out.chat = true;
  GenerateRequest request;
  request.parse_reply = true;
  ChatPrompt prompt;
  FieldReader fields(root.get_object(), "");
  ReadSharedFields(fields, options, &out, &request);
  ReadLength(fields, &request);
  ReadThinking(fields, &prompt);
  ReadToolChoice(fields, &prompt);
  ReadLogprobs(fields, &request);
  ReadFormat(fields);
  prompt.messages = ReadMessages(fields);
  prompt.tools = ReadTools(fields);
  RETURN_IF_ERROR(fields.Finish());
  request.prompt = std::move(prompt);
  out.requests.push_back(std::move(request));
  return out;
}

}  // namespace conclave::http
