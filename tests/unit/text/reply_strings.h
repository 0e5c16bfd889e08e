// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/reply_parser.h"
#include "tests/testing/seeded.h"

namespace conclave::text {

struct Call {
  std::string id;
  std::string name;
  std::string arguments;
  bool operator==(const Call&) const = default;
};

// A reply, put together as a client does.
struct Reply {
  std::string content;
  std::string reasoning;
  std::vector<Call> calls;
  bool in_order = true;  // deltas come by index, the id in the first
  bool operator==(const Reply&) const = default;
};

inline void Add(const ReplyPiece& piece, Reply& reply) {
  reply.content += piece.content;
  reply.reasoning += piece.reasoning;
  for (const ToolCallDelta& delta : piece.tool_calls) {
    const auto next = static_cast<int32_t>(reply.calls.size());
    if (delta.index == next) {
      reply.calls.push_back({delta.id, delta.name, ""});
      reply.in_order &= !delta.id.empty() && !delta.name.empty();
    } else {
      reply.in_order &= delta.index == next - 1 && delta.id.empty();
    }
    if (!reply.calls.empty()) reply.calls.back().arguments += delta.arguments;
  }
}

inline Reply ParseReply(const std::vector<std::string>& pieces,
                        bool thinking,
                        std::vector<Tool> tools) {
  ReplyParser parser(thinking, std::move(tools), "call_");
  Reply reply;
  for (const std::string& piece : pieces) Add(parser.Push(piece), reply);
  Add(parser.Finish(), reply);
  return reply;
}

// Pieces of 0 to `most` bytes.
inline std::vector<std::string> Cut(std::string_view text,
                                    testing::Seeded& random,
                                    int32_t most) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const auto size = std::min<size_t>(random.Int(most + 1), text.size());
    out.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return out;
}

// Markup, broken markup and prose in any order; mostly what models write.
inline std::string RandomReply(testing::Seeded& random) {
  static const std::vector<std::string> kParts = {
      "<think>",
      "</think>",
      "</think>\n\n",
      "\n",
      "\n\n",
      " ",
      "<",
      "</",
      "text",
      "a < b",
      "<tool_call>",
      "<tool_call>\n",
      "</tool_call>",
      "</tool_call>\n",
      "<function=get_weather>\n",
      "<function=now>",
      "<function=nothing>\n",
      "</function>\n",
      "</function>",
      "<parameter=city>\n",
      "<parameter=days>\n",
      "</parameter>\n",
      "\n</parameter>\n",
      "<parameter=",
      "<func",
      "</par",
      "\xC3\xA9",
      "12",
      "True",
      "{\"a\": [1, 2.5]}",
      "\"quoted\"",
      "\t",
      "\r\n",
      "<tool_call>\n<function=now>\n</function>\n</tool_call>",
      "<tool_call>\n<function=get_weather>\n<parameter=city>\n",
      "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n"
      "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n"
      "</tool_call>\n"};
  std::string text;
  for (int32_t n = random.Int(16); n >= 0; --n) {
    text += kParts[random.Int(static_cast<int32_t>(kParts.size()))];
  }
  return text;
}

}  // namespace conclave::text
