// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/schedule/request.h"

namespace conclave::text {

// What a piece of the model's text turned into.
struct ReplyPiece {
  std::string content;
  std::string reasoning;
  std::vector<ToolCallDelta> tool_calls;
};

// Splits a streamed reply into reasoning, content and tool calls. Any cutting
// of the text into Push calls gives the same concatenated result. Bounded
// look-ahead: text that turns out to be no call is flushed as content.
class ReplyParser {
 public:
  // thinking: the prompt ended inside the think block. tools: empty = tool
  // calls are not parsed, their text is content. id_prefix: of call ids.
  ReplyParser(bool thinking, std::vector<Tool> tools, std::string id_prefix);
  ~ReplyParser();

  ReplyPiece Push(std::string_view text);
  // End of the reply: flushes what is held back.
  ReplyPiece Finish();

  int32_t tool_call_count() const;
  bool in_reasoning() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::text
