// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <string_view>
#include <utility>

#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"
#include "coordinator/http/openai_reply.h"
#include "coordinator/http/status_map.h"
#include "coordinator/http/utf8.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

json::object Model(const ReplyHead& head, int32_t max_context) {
  json::object out;
  out["id"] = head.model;
  out["object"] = "model";
  out["created"] = head.created;
  out["owned_by"] = "conclave";
  out["max_model_len"] = max_context;  // as vLLM names it
  return out;
}

json::value CodeWord(const absl::Status& status, std::string_view field) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      if (field == "model") return "model_not_found";
      return nullptr;
    case absl::StatusCode::kUnauthenticated:
      return "invalid_api_key";
    case absl::StatusCode::kResourceExhausted:
      return "rate_limit_exceeded";
    default:
      return nullptr;
  }
}

}  // namespace

std::string ErrorJson(const absl::Status& status,
                      int http_status,
                      bool numeric_code) {
  const std::string message = ToUtf8Lossy(
      std::string_view(status.message().data(), status.message().size()));
  const std::string_view field = FieldOf(message);
  const std::string_view type = ErrorTypeOf(http_status);
  json::object error;
  error["message"] = message;
  error["type"] = json::string_view(type.data(), type.size());
  error["param"] = nullptr;
  // Only what is wrong with the request is about one of its fields.
  if (http_status < 500 && !field.empty()) {
    error["param"] = json::string_view(field.data(), field.size());
  }
  error["code"] = nullptr;
  if (numeric_code) {
    error["code"] = http_status;
  } else {
    error["code"] = CodeWord(status, field);
  }
  json::object out;
  out["error"] = std::move(error);
  return json::serialize(out);
}

std::string ModelJson(const ReplyHead& head, int32_t max_context) {
  return json::serialize(Model(head, max_context));
}

std::string ModelListJson(const ReplyHead& head, int32_t max_context) {
  json::object out;
  out["object"] = "list";
  out["data"] = json::array{Model(head, max_context)};
  return json::serialize(out);
}

std::string HealthJson(const absl::Status& status,
                       int32_t running,
                       int32_t waiting) {
  json::object out;
  out["status"] = status.ok() ? "ok" : "unavailable";
  if (!status.ok()) {
    out["reason"] = ToUtf8Lossy(
        std::string_view(status.message().data(), status.message().size()));
  }
  out["running"] = running;
  out["waiting"] = waiting;
  return json::serialize(out);
}

}  // namespace conclave::http
