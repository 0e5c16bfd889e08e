// SPDX-License-Identifier: Apache-2.0
// Lines make a chat: the first letter chooses what the line is. Rendering ends
// in the generation prompt, or in an error that names the place.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/chat_template.h"

namespace {

struct Chat {
  std::vector<conclave::Message> messages;
  std::vector<conclave::Tool> tools;
};

// s, u, a, t: a message; r, c: reasoning or a call's arguments of the last
// one; d: a tool's declaration; anything else: an unknown role.
void AddLine(std::string_view line, Chat& chat) {
  const std::string text(line.substr(1));
  auto& messages = chat.messages;
  const auto add = [&](const char* role) {
    messages.push_back({.role = role,
                        .content = text,
                        .reasoning_content = {},
                        .tool_calls = {}});
  };
  switch (line[0]) {
    case 's':
      return add("system");
    case 'u':
      return add("user");
    case 'a':
      return add("assistant");
    case 't':
      return add("tool");
    case 'r':
      if (!messages.empty()) messages.back().reasoning_content = text;
      return;
    case 'c':
      if (messages.empty()) return;
      messages.back().tool_calls.push_back(
          {.id = "", .name = "f", .arguments_json = text});
      return;
    case 'd':
      chat.tools.push_back(
          {.name = "f", .json = text, .parameters_json = "{}"});
      return;
    default:
      return add("other");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave::text;  // NOLINT: a fuzzer's main
  Chat chat;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(line.size() + (line.size() < text.size() ? 1 : 0));
    if (!line.empty()) AddLine(line, chat);
  }
  const bool thinking = ApplySoftSwitches(chat.messages).value_or(true);
  TemplateOptions options{.add_generation_prompt = false,
                          .enable_thinking = thinking};
  const auto without = RenderChat(chat.messages, chat.tools, options);
  options.add_generation_prompt = true;
  const auto with = RenderChat(chat.messages, chat.tools, options);
  if (with.ok() != without.ok()) std::abort();
  if (!with.ok()) {
    const std::string error(with.status().message());
    if (!error.starts_with("messages") && !error.starts_with("tools[")) {
      std::abort();
    }
    return 0;
  }
  const std::string prompt = std::string("<|im_start|>assistant\n<think>\n") +
                             (thinking ? "" : "\n</think>\n\n");
  if (*with != *without + prompt) std::abort();
  return 0;
}
