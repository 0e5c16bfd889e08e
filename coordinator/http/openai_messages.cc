// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"
#include "common/limits.h"
#include "coordinator/http/json_text.h"
#include "coordinator/http/openai_fields.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

// A text, or a list of text parts, which are joined as the template does.
void ReadContent(FieldReader& fields, std::string* out, bool* present) {
  const json::value* content = fields.Find("content");
  *present = content != nullptr;
  if (content == nullptr) return;
  if (content->is_string()) {
    out->assign(content->get_string().c_str(), content->get_string().size());
    return;
  }
  if (!content->is_array()) {
    return fields.Fail("content", "must be a text or a list of text parts");
  }
  size_t index = 0;
  for (const json::value& part : content->get_array()) {
    const std::string path =
        absl::StrCat(fields.Path("content"), "[", index++, "]");
    const std::string name = absl::StrCat("content[", index - 1, "]");
    if (!part.is_object()) return fields.Fail(name, "must be an object");
    FieldReader inner(part.get_object(), path);
    std::string type, text;
    inner.Read("type", &type);
    if (inner.ok() && type != "text") {
      return fields.Fail(
          name,
          absl::StrCat("a part of type \"",
                       type.substr(0, 64),
                       "\"; this server takes parts of type \"text\" only"));
    }
    if (inner.ok() && !inner.Read("text", &text)) {
      inner.Fail("text", "is missing");
    }
    inner.Accept({"cache_control"});
    fields.Fail(inner.Finish());
    if (!fields.ok()) return;
    out->append(text);
  }
}

void ReadCall(FieldReader& call, ToolCall* out) {
  call.Read("id", &out->id);
  std::string type = "function";
  call.Read("type", &type);
  if (type != "function") call.Fail("type", "must be \"function\"");
  call.Accept({"index"});
  const json::value* function = call.Find("function");
  if (function == nullptr || !function->is_object()) {
    return call.Fail("function", "must be an object");
  }
  FieldReader inner(function->get_object(), call.Path("function"));
  if (!inner.Read("name", &out->name)) inner.Fail("name", "is missing");
  // OpenAI sends a text that holds JSON; some clients send the object.
  const json::value* arguments =
      function->get_object().if_contains("arguments");
  if (arguments != nullptr && arguments->is_object()) {
    inner.Accept({"arguments"});
    out->arguments_json = json::serialize(*arguments);
  } else {
    inner.Read("arguments", &out->arguments_json);
    if (out->arguments_json.empty()) out->arguments_json = "{}";
    auto parsed =
        ParseJson(out->arguments_json, call.Path("function.arguments"));
    if (!parsed.ok()) {
      inner.Fail(parsed.status());
    } else if (!parsed->is_object()) {
      inner.Fail("arguments", "must hold a JSON object");
    }
  }
  call.Fail(inner.Finish());
}

void ReadToolCalls(FieldReader& fields, Message* message) {
  const json::value* calls = fields.Find("tool_calls");
  if (calls == nullptr) return;
  if (!calls->is_array() || calls->get_array().size() > limits::kToolsMax) {
    return fields.Fail(
        "tool_calls",
        absl::StrCat("must be a list of at most ", limits::kToolsMax));
  }
  for (size_t i = 0; i < calls->get_array().size() && fields.ok(); ++i) {
    const json::value& value = calls->get_array()[i];
    const std::string name = absl::StrCat("tool_calls[", i, "]");
    if (!value.is_object()) return fields.Fail(name, "must be an object");
    FieldReader call(value.get_object(), fields.Path(name));
    ReadCall(call, &message->tool_calls.emplace_back());
    fields.Fail(call.Finish());
  }
  if (!message->tool_calls.empty() && message->role != "assistant") {
    fields.Fail("tool_calls", "only assistant messages have tool calls");
  }
}

void ReadMessage(FieldReader& fields, Message* message) {
  if (!fields.Read("role", &message->role)) {
    return fields.Fail("role", "is missing");
  }
  if (message->role == "developer") message->role = "system";  // OpenAI's alias
  if (message->role != "system" && message->role != "user" &&
      message->role != "assistant" && message->role != "tool") {
    return fields.Fail("role", "must be system, user, assistant or tool");
  }
  bool has_content = false;
  ReadContent(fields, &message->content, &has_content);
  std::string reasoning;
  if (fields.Read("reasoning_content", &reasoning)) {
    if (message->role != "assistant") {
      fields.Fail("reasoning_content", "only assistant messages have it");
    }
    message->reasoning_content = std::move(reasoning);
  }
  ReadToolCalls(fields, message);
  if (!has_content && message->tool_calls.empty() &&
      !message->reasoning_content.has_value()) {
    fields.Fail("content", "is missing");
  }
  // The model's format has no place for them.
  fields.Accept({"name", "tool_call_id", "refusal", "annotations", "audio"});
}

}  // namespace

std::vector<Message> ReadMessages(FieldReader& fields) {
  std::vector<Message> out;
  const json::value* messages = fields.Find("messages");
  if (messages == nullptr || !messages->is_array() ||
      messages->get_array().empty()) {
    fields.Fail("messages", "must be a list of at least one message");
    return out;
  }
  if (messages->get_array().size() > limits::kMessagesMax) {
    fields.Fail("messages",
                absl::StrCat("more than ", limits::kMessagesMax, " messages"));
    return out;
  }
  for (size_t i = 0; i < messages->get_array().size() && fields.ok(); ++i) {
    const json::value& value = messages->get_array()[i];
    const std::string name = absl::StrCat("messages[", i, "]");
    if (!value.is_object()) {
      fields.Fail(name, "must be an object");
      break;
    }
    FieldReader message(value.get_object(), name);
    ReadMessage(message, &out.emplace_back());
    fields.Fail(message.Finish());
  }
  return out;
}

std::vector<Tool> ReadTools(FieldReader& fields) {
  std::vector<Tool> out;
  const json::value* tools = fields.Find("tools");
  if (tools == nullptr) return out;
  if (!tools->is_array() || tools->get_array().size() > limits::kToolsMax) {
    fields.Fail("tools",
                absl::StrCat("must be a list of at most ", limits::kToolsMax));
    return out;
  }
  for (size_t i = 0; i < tools->get_array().size() && fields.ok(); ++i) {
    const json::value& value = tools->get_array()[i];
    const std::string name = absl::StrCat("tools[", i, "]");
    const json::value* function =
        value.is_object() ? value.get_object().if_contains("function")
                          : nullptr;
    if (function == nullptr || !function->is_object()) {
      fields.Fail(name,
                  "must be {\"type\": \"function\", \"function\": {...}}");
      break;
    }
    FieldReader tool(value.get_object(), name);
    std::string type;
    if (!tool.Read("type", &type) || type != "function") {
      tool.Fail("type", "must be \"function\"");
    }
    tool.Accept({"function"});
    Tool& result = out.emplace_back();
    FieldReader inner(function->get_object(), absl::StrCat(name, ".function"));
    if (!inner.Read("name", &result.name) || result.name.empty()) {
      inner.Fail("name", "is missing");
    }
    const json::value* parameters = inner.Find("parameters");
    if (parameters != nullptr && !parameters->is_object()) {
      inner.Fail("parameters", "must be a JSON schema, an object");
    }
    result.parameters_json =
        parameters == nullptr ? "{}" : json::serialize(*parameters);
    result.json = json::serialize(value);
    // The model sees the whole object, so nothing in it is ignored.
    inner.Accept({"description", "strict", "return"});
    tool.Fail(inner.Finish());
    fields.Fail(tool.Finish());
  }
  return out;
}

}  // namespace conclave::http
