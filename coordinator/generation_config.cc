// SPDX-License-Identifier: Apache-2.0
#include "coordinator/generation_config.h"

#include <boost/json.hpp>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/strict_json.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

namespace json = boost::json;

absl::Status Bad(const std::string& field, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

absl::Status InRange(const std::string& field,
                     double value,
                     double low,
                     double high) {
  if (std::isfinite(value) && value >= low && value <= high) {
    return absl::OkStatus();
  }
  return Bad(
      field,
      absl::StrCat("must lie between ", low, " and ", high, ", is ", value));
}

absl::Status CheckSampling(const SamplingParams& s, int32_t vocab_used) {
  RETURN_IF_ERROR(InRange("temperature", s.temperature, 0, 2));
  RETURN_IF_ERROR(InRange("top_k", s.top_k, 0, limits::kVocabMax));
  RETURN_IF_ERROR(InRange("top_p", s.top_p, 0, 1));
  if (s.top_p == 0) return Bad("top_p", "must be above 0");
  RETURN_IF_ERROR(InRange("min_p", s.min_p, 0, 1));
  RETURN_IF_ERROR(InRange("presence_penalty", s.presence_penalty, -2, 2));
  RETURN_IF_ERROR(InRange("frequency_penalty", s.frequency_penalty, -2, 2));
  RETURN_IF_ERROR(
      InRange("repetition_penalty", s.repetition_penalty, 0.01, 10));
  if (s.logit_bias.size() > static_cast<size_t>(limits::kLogitBiasMax)) {
    return Bad("logit_bias",
               absl::StrCat("at most ", limits::kLogitBiasMax, " entries"));
  }
  for (const auto& [id, bias] : s.logit_bias) {
    if (id < 0 || id >= vocab_used) {
      return Bad("logit_bias", absl::StrCat("the model has no token ", id));
    }
    RETURN_IF_ERROR(InRange("logit_bias", bias, -100, 100));
  }
  return absl::OkStatus();
}

absl::Status CheckStop(const std::vector<std::string>& stop) {
  if (stop.size() > static_cast<size_t>(limits::kStopStringsMax)) {
    return Bad("stop",
               absl::StrCat("at most ", limits::kStopStringsMax, " strings"));
  }
  for (const std::string& text : stop) {
    if (text.empty() ||
        text.size() > static_cast<size_t>(limits::kStopBytesMax)) {
      return Bad(
          "stop",
          absl::StrCat("a string of 1 to ", limits::kStopBytesMax, " bytes"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SamplingParams> ReadGenerationConfig(const std::string& folder) {
  SamplingParams out;
  const std::string path = folder + "/generation_config.json";
  const auto text =
      checkpoint::ReadSmallFile(path, limits::kConfigFileBytesMax);
  if (absl::IsNotFound(text.status())) return out;
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const json::value root,
                   checkpoint::ParseStrictJson(*text, path));
  if (!root.is_object()) return Bad(path, "must be a JSON object");
  const json::object& object = root.get_object();
  const auto number = [&](const char* field, auto& into) {
    const json::value* value = object.if_contains(field);
    if (value == nullptr || value->is_null()) return absl::OkStatus();
    json::error_code error;
    const auto read = value->to_number<double>(error);
    if (error) return Bad(path, absl::StrCat(field, " must be a number"));
    into = static_cast<std::remove_reference_t<decltype(into)>>(read);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(number("temperature", out.temperature));
  RETURN_IF_ERROR(number("top_k", out.top_k));
  RETURN_IF_ERROR(number("top_p", out.top_p));
  RETURN_IF_ERROR(number("min_p", out.min_p));
  RETURN_IF_ERROR(number("repetition_penalty", out.repetition_penalty));
  const json::value* sample = object.if_contains("do_sample");
  if (sample != nullptr && sample->is_bool() && !sample->get_bool()) {
    out.temperature = 0;
  }
  const absl::Status valid = CheckSampling(out, limits::kVocabMax);
  if (!valid.ok()) return Bad(path, std::string(valid.message()));
  return out;
}

absl::Status CheckRequest(const GenerateRequest& request,
                          int32_t prompt_tokens,
                          const RequestBounds& bounds) {
  const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
  const std::string field = chat ? "messages" : "prompt";
  RETURN_IF_ERROR(CheckSampling(request.sampling, bounds.vocab_used));
  RETURN_IF_ERROR(CheckStop(request.stop));
  if (prompt_tokens < 1) return Bad(field, "must not be empty");
  const int32_t wanted = request.max_tokens.value_or(1);
  if (wanted < 0 || (wanted == 0 && !request.echo)) {
    return Bad("max_tokens", "must be at least 1 (0 only with echo)");
  }
  if (prompt_tokens > bounds.max_context) {
    return Bad(field,
               absl::StrCat("the context holds ",
                            bounds.max_context,
                            " tokens, the prompt has ",
                            prompt_tokens));
  }
  if (int64_t{prompt_tokens} + wanted > bounds.max_context) {
    return Bad(request.max_tokens ? "max_tokens" : field,
               absl::StrCat("the context holds ",
                            bounds.max_context,
                            " tokens, the prompt has ",
                            prompt_tokens,
                            " and ",
                            wanted,
                            " new ones are asked for"));
  }
  if (request.top_logprobs < 0 ||
      request.top_logprobs > limits::kTopLogprobsMax) {
    return Bad(
        "top_logprobs",
        absl::StrCat("must lie between 0 and ", limits::kTopLogprobsMax));
  }
  if (request.top_logprobs > 0 && !request.logprobs) {
    return Bad("top_logprobs", "needs logprobs");
  }
  if (request.echo && chat) return Bad("echo", "is for completions");
  return absl::OkStatus();
}

}  // namespace conclave
