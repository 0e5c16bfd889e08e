// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "boost/json/array.hpp"
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

// A text or a list of token ids; nothing for other things.
std::optional<Prompt> OnePrompt(const json::value& value) {
  if (value.is_string()) {
    return std::string(value.get_string().c_str(), value.get_string().size());
  }
  if (!value.is_array() || value.get_array().empty()) return std::nullopt;
  std::vector<int32_t> ids;
  ids.reserve(value.get_array().size());
  for (const json::value& id : value.get_array()) {
    if (!id.is_int64() || id.get_int64() < 0 ||
        id.get_int64() >= limits::kVocabMax) {
      return std::nullopt;
    }
    ids.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return ids;
}

std::vector<Prompt> ReadPrompts(FieldReader& fields) {
  std::vector<Prompt> out;
  const json::value* value = fields.Find("prompt");
  if (value == nullptr) {
    fields.Fail("prompt", "is missing");
    return out;
  }
  if (std::optional<Prompt> one = OnePrompt(*value)) {
    out.push_back(*std::move(one));
    return out;
  }
  if (!value->is_array() || value->get_array().empty() ||
      value->get_array().size() > kPromptsMax) {
    fields.Fail("prompt",
                absl::StrCat("must be a text, a list of token ids, or a list "
                             "of 1 to ",
                             kPromptsMax,
                             " of these"));
    return out;
  }
  for (size_t i = 0; i < value->get_array().size(); ++i) {
    std::optional<Prompt> one = OnePrompt(value->get_array()[i]);
    if (!one.has_value()) {
      fields.Fail(absl::StrCat("prompt[", i, "]"),
                  "must be a text or a list of token ids");
      return out;
    }
    out.push_back(*std::move(one));
  }
  return out;
}

void ReadLengthAndEcho(FieldReader& fields, GenerateRequest* request) {
  fields.Read("echo", &request->echo);
  int64_t tokens = kCompletionTokensDefault;
  fields.ReadInteger("max_tokens", 0, INT32_MAX, &tokens);
  if (tokens == 0 && !request->echo) {
    fields.Fail("max_tokens", "0 makes sense with echo: true only");
  }
  request->max_tokens = static_cast<int32_t>(tokens);
  int64_t top = 0;
  if (fields.ReadInteger("logprobs", 0, limits::kTopLogprobsMax, &top)) {
    request->logprobs = true;
    request->top_logprobs = static_cast<int32_t>(top);
  }
  int64_t best_of = 1;
  fields.ReadInteger("best_of", 1, 1, &best_of);
  fields.Refuse("suffix", "this model does not fill in the middle");
  fields.Refuse("max_completion_tokens", "belongs to /v1/chat/completions");
}

}  // namespace

absl::StatusOr<ApiRequest> ParseCompletionRequest(std::string_view body,
                                                  const ParseOptions& options) {
  ASSIGN_OR_RETURN(const json::value root, ParseJson(body, "body"));
  if (!root.is_object()) {
    return absl::InvalidArgumentError("body: must be a JSON object");
  }
  ApiRequest out;
  out.chat = false;
  GenerateRequest request;
  FieldReader fields(root.get_object(), "");
  ReadSharedFields(fields, options, &out, &request);
  ReadLengthAndEcho(fields, &request);
  std::vector<Prompt> prompts = ReadPrompts(fields);
  RETURN_IF_ERROR(fields.Finish());
  for (Prompt& prompt : prompts) {
    GenerateRequest& one = out.requests.emplace_back(request);
    one.prompt = std::move(prompt);
  }
  return out;
}

}  // namespace conclave::http
