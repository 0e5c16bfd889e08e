// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/chat_template.h"

#include <array>
#include <boost/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/text/json_format.h"
#include "coordinator/text/unicode.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr const char* kToolsHead =
    "# Tools\n\nYou have access to the following functions:\n\n<tools>";
constexpr const char* kToolsTail =
    "\n</tools>\n\nIf you choose to call a function ONLY reply in the "
    "following format with NO suffix:\n\n<tool_call>\n"
    "<function=example_function_name>\n<parameter=example_parameter_1>\n"
    "value_1\n</parameter>\n<parameter=example_parameter_2>\nThis is the value "
    "for the second parameter\nthat can span\nmultiple lines\n</parameter>\n"
    "</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n- Function calls "
    "MUST follow the specified format: an inner <function=...></function> "
    "block must be nested within <tool_call></tool_call> XML tags\n- Required "
    "parameters MUST be specified\n- You may provide optional reasoning for "
    "your function call in natural language BEFORE the function call, but NOT "
    "after\n- If there is no function call available, answer the question like "
    "normal with your current knowledge and do not tell the user about "
    "function calls\n</IMPORTANT>";

absl::Status Bad(size_t index, const std::string& rest) {
  return absl::InvalidArgumentError(
      absl::StrCat("messages[", index, "]", rest));
}

absl::StatusOr<json::value> Parse(const std::string& text) {
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  json::error_code error;
  json::value value = json::parse(text, error, {}, options);
  if (error) return absl::InvalidArgumentError(error.message());
  return value;
}

std::string Strip(const std::string& text) {
  return std::string(StripSpace(text));
}

struct Reply {
  std::string reasoning;
  std::string content;
};

// Reasoning stands in a field of its own, or in the content's think block.
Reply Split(const Message& message) {
  Reply reply;
  reply.content = Strip(message.content);
  if (message.reasoning_content) {
    reply.reasoning = *message.reasoning_content;
    return reply;
  }
  constexpr std::string_view kEnd = "</think>";
  constexpr std::string_view kBegin = "<think>";
  const std::string text = reply.content;
  const size_t first = text.find(kEnd);
  if (first == std::string::npos) return reply;
  std::string_view before = std::string_view(text).substr(0, first);
  while (before.ends_with('\n')) before.remove_suffix(1);
  const size_t open = before.rfind(kBegin);
  if (open != std::string_view::npos) {
    before.remove_prefix(open + kBegin.size());
  }
  while (before.starts_with('\n')) before.remove_prefix(1);
  std::string_view after = std::string_view(text);
  after.remove_prefix(text.rfind(kEnd) + kEnd.size());
  while (after.starts_with('\n')) after.remove_prefix(1);
  reply.reasoning = std::string(before);
  reply.content = std::string(after);
  return reply;
}

absl::Status AppendCalls(const Message& message,
                         size_t index,
                         bool content_before,
                         std::string& out) {
  for (size_t j = 0; j < message.tool_calls.size(); ++j) {
    const ToolCall& call = message.tool_calls[j];
    const char* lead = j > 0 ? "\n" : (content_before ? "\n\n" : "");
    absl::StrAppend(&out, lead, "<tool_call>\n<function=", call.name, ">\n");
    const auto arguments =
        Parse(call.arguments_json.empty() ? "{}" : call.arguments_json);
    if (!arguments.ok() || !arguments->is_object()) {
      return Bad(index,
                 absl::StrCat(".tool_calls[",
                              j,
                              "].function.arguments: must be a JSON object"));
    }
    for (const auto& member : arguments->get_object()) {
      absl::StrAppend(&out,
                      "<parameter=",
                      std::string(member.key()),
                      ">\n",
                      PythonText(member.value()),
                      "\n</parameter>\n");
    }
    out += "</function>\n</tool_call>";
  }
  return absl::OkStatus();
}

absl::Status AppendHead(const std::vector<Message>& messages,
                        const std::vector<Tool>& tools,
                        std::string& out) {
  const bool has_system = messages[0].role == "system";
  const std::string system = has_system ? Strip(messages[0].content) : "";
  if (tools.empty()) {
    if (has_system) {
      absl::StrAppend(&out, "<|im_start|>system\n", system, "<|im_end|>\n");
    }
    return absl::OkStatus();
  }
  absl::StrAppend(&out, "<|im_start|>system\n", kToolsHead);
  for (size_t i = 0; i < tools.size(); ++i) {
    const auto value = Parse(tools[i].json);
    if (!value.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tools[", i, "]: ", value.status().message()));
    }
    absl::StrAppend(&out, "\n", PythonJson(*value));
  }
  absl::StrAppend(
      &out, kToolsTail, system.empty() ? "" : "\n\n", system, "<|im_end|>\n");
  return absl::OkStatus();
}

// Index of the last user message that asks something, or -1.
int64_t LastQuery(const std::vector<Message>& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role != "user") continue;
    const std::string_view text = StripSpace(messages[i].content);
    if (!(text.starts_with("<tool_response>") &&
          text.ends_with("</tool_response>"))) {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

absl::Status AppendMessage(const std::vector<Message>& messages,
                           size_t i,
                           int64_t last_query,
                           std::string& out) {
  const Message& message = messages[i];
  if (message.role == "system") {
    if (i == 0) return absl::OkStatus();
    return Bad(i, ".role: a system message must be the first");
  }
  if (message.role == "user") {
    absl::StrAppend(
        &out, "<|im_start|>user\n", Strip(message.content), "<|im_end|>\n");
    return absl::OkStatus();
  }
  if (message.role == "assistant") {
    const Reply reply = Split(message);
    out += "<|im_start|>assistant\n";
    if (static_cast<int64_t>(i) > last_query) {
      absl::StrAppend(
          &out, "<think>\n", Strip(reply.reasoning), "\n</think>\n\n");
    }
    out += reply.content;
    RETURN_IF_ERROR(
        AppendCalls(message, i, !StripSpace(reply.content).empty(), out));
    out += "<|im_end|>\n";
    return absl::OkStatus();
  }
  if (message.role == "tool") {
    if (i > 0 && messages[i - 1].role != "tool") out += "<|im_start|>user";
    absl::StrAppend(&out,
                    "\n<tool_response>\n",
                    Strip(message.content),
                    "\n</tool_response>");
    if (i + 1 == messages.size() || messages[i + 1].role != "tool") {
      out += "<|im_end|>\n";
    }
    return absl::OkStatus();
  }
  return Bad(i,
             absl::StrCat(".role: \"",
                          message.role,
                          "\" is not system, user, assistant or tool"));
}

}  // namespace

absl::StatusOr<std::string> RenderChat(const std::vector<Message>& messages,
                                       const std::vector<Tool>& tools,
                                       const TemplateOptions& options) {
  if (messages.empty()) {
    return absl::InvalidArgumentError("messages: must not be empty");
  }
  const int64_t last_query = LastQuery(messages);
  std::string out;
  RETURN_IF_ERROR(AppendHead(messages, tools, out));
  for (size_t i = 0; i < messages.size(); ++i) {
    RETURN_IF_ERROR(AppendMessage(messages, i, last_query, out));
  }
  if (last_query < 0) {
    return absl::InvalidArgumentError(
        "messages: no user message that asks something");
  }
  if (options.add_generation_prompt) {
    absl::StrAppend(&out,
                    "<|im_start|>assistant\n<think>\n",
                    options.enable_thinking ? "" : "\n</think>\n\n");
  }
  return out;
}

std::optional<bool> ApplySoftSwitches(std::vector<Message>& messages) {
  static constexpr std::array<std::pair<std::string_view, bool>, 3> kWords = {
      {{"/think", true}, {"/nothink", false}, {"/no_think", false}}};
  std::optional<bool> last;
  for (Message& message : messages) {
    if (message.role != "user") continue;
    last.reset();
    const std::string_view text = StripSpace(message.content);
    for (const auto& [word, think] : kWords) {
      if (!text.starts_with(word)) continue;
      const std::string_view rest = text.substr(word.size());
      const std::string_view stripped = StripSpace(rest);
      // A word of its own: the end, or whitespace, follows.
      if (!rest.empty() && stripped.data() == rest.data() &&
          !stripped.empty()) {
        continue;
      }
      last = think;
      message.content = std::string(stripped);
      break;
    }
  }
  return last;
}

}  // namespace conclave::text
