// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/openai_fields.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "coordinator/http/views.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

void ReadStop(FieldReader& fields, GenerateRequest* request) {
  const json::value* stop = fields.Find("stop");
  if (stop == nullptr) return;
  const auto add = [&](const json::value& value) {
    if (!value.is_string() || value.get_string().empty()) {
      return fields.Fail("stop",
                         "must be a text or a list of texts, none "
                         "empty");
    }
    if (value.get_string().size() > limits::kStopBytesMax) {
      return fields.Fail(
          "stop",
          absl::StrCat("a text over ", limits::kStopBytesMax, " bytes"));
    }
    request->stop.emplace_back(value.get_string().c_str(),
                               value.get_string().size());
  };
  if (!stop->is_array()) return add(*stop);
  if (stop->get_array().size() > limits::kStopStringsMax) {
    return fields.Fail(
        "stop", absl::StrCat("more than ", limits::kStopStringsMax, " texts"));
  }
  for (const json::value& value : stop->get_array()) add(value);
}

void ReadLogitBias(FieldReader& fields, SamplingParams* sampling) {
  const json::value* bias = fields.Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) {
    return fields.Fail("logit_bias", "must map token ids to numbers");
  }
  if (bias->get_object().size() > limits::kLogitBiasMax) {
    return fields.Fail(
        "logit_bias",
        absl::StrCat("more than ", limits::kLogitBiasMax, " tokens"));
  }
  FieldReader entries(bias->get_object(), "logit_bias");
  for (const auto& entry : bias->get_object()) {
    const std::string_view key(entry.key().data(), entry.key().size());
    int32_t id = 0;
    double value = 0;
    if (!absl::SimpleAtoi(Abs(key), &id) || id < 0 || id >= limits::kVocabMax) {
      return fields.Fail(
          "logit_bias",
          absl::StrCat("\"", Abs(key.substr(0, 32)), "\" is no token id"));
    }
    if (!entries.ReadNumber(key, -100, 100, &value)) {
      entries.Fail(key, "must be a number");  // null: the first error counts
      return fields.Fail(entries.Finish());
    }
    sampling->logit_bias.emplace_back(id, static_cast<float>(value));
  }
}

void ReadSampling(FieldReader& fields, SamplingParams* sampling) {
  fields.ReadNumber("temperature", 0, 2, &sampling->temperature);
  if (fields.ReadNumber("top_p", 0, 1, &sampling->top_p) &&
      sampling->top_p == 0) {
    fields.Fail("top_p", "must be over 0");
  }
  fields.ReadNumber("min_p", 0, 1, &sampling->min_p);
  fields.ReadNumber("presence_penalty", -2, 2, &sampling->presence_penalty);
  fields.ReadNumber("frequency_penalty", -2, 2, &sampling->frequency_penalty);
  if (fields.ReadNumber(
          "repetition_penalty", 0, 10, &sampling->repetition_penalty) &&
      sampling->repetition_penalty == 0) {
    fields.Fail("repetition_penalty", "must be over 0");
  }
  int64_t top_k = 0;
  if (fields.ReadInteger("top_k", -1, limits::kVocabMax, &top_k)) {
    sampling->top_k = static_cast<int32_t>(top_k < 0 ? 0 : top_k);
  }
  int64_t seed = 0;
  if (fields.ReadInteger("seed", INT64_MIN, INT64_MAX, &seed)) {
    sampling->seed = static_cast<uint64_t>(seed);
  }
  ReadLogitBias(fields, sampling);
}

void ReadStreamFields(FieldReader& fields, ApiRequest* out) {
  fields.Read("stream", &out->stream);
  const json::value* options = fields.Find("stream_options");
  if (options == nullptr) return;
  if (!out->stream) {
    return fields.Fail("stream_options", "only with stream: true");
  }
  if (!options->is_object()) {
    return fields.Fail("stream_options", "must be an object");
  }
  FieldReader inner(options->get_object(), "stream_options");
  inner.Read("include_usage", &out->include_usage);
  inner.Accept({"include_obfuscation"});
  fields.Fail(inner.Finish());
}

void ReadModel(FieldReader& fields, const ParseOptions& options) {
  std::string model;
  if (fields.Read("model", &model) && model != options.model) {
    fields.Fail(absl::NotFoundError(absl::StrCat("model: '",
                                                 model.substr(0, 128),
                                                 "' does not exist; this "
                                                 "server serves '",
                                                 options.model,
                                                 "'")));
  }
}

// OpenAI's own fields without meaning for one server of one model.
void ReadBookkeeping(FieldReader& fields) {
  fields.Accept({"user",
                 "metadata",
                 "store",
                 "service_tier",
                 "safety_identifier",
                 "prompt_cache_key",
                 "prompt_cache_retention"});
  int64_t one = 1;
  fields.ReadInteger("n", 1, 1, &one);
}

}  // namespace

void ReadSharedFields(FieldReader& fields,
                      const ParseOptions& options,
                      ApiRequest* out,
                      GenerateRequest* request) {
  request->sampling = options.defaults;
  ReadModel(fields, options);
  ReadStreamFields(fields, out);
  ReadSampling(fields, &request->sampling);
  ReadStop(fields, request);
  fields.Read("ignore_eos", &request->ignore_eos);
  ReadBookkeeping(fields);
}

}  // namespace conclave::http
