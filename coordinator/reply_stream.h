// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/schedule/request.h"
#include "coordinator/stop_filter.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/reply_parser.h"
#include "coordinator/text/tokenizer.h"

namespace conclave {

// Turns the tokens of one reply into events: bytes -> UTF-8 -> stop strings ->
// reasoning, content, tool calls. Pure: no clock, no I/O.
class ReplyStream {
 public:
  struct Options {
    const text::Tokenizer* tokenizer = nullptr;
    std::vector<std::string> stop;
    bool parse = false;     // split reasoning and tool calls
    bool thinking = false;  // the prompt ended inside the think block
    std::vector<Tool> tools;
    std::string id_prefix;
  };
  explicit ReplyStream(Options options);

  // The prompt's text comes first (echo).
  void Echo(std::span<const int32_t> prompt, TokenEvent& event);
  // Adds one token of the reply to `event`. True: a stop string came.
  bool Push(int32_t token, TokenEvent& event);
  // The end: flushes what is held back. `eos`: by an end token or stop string.
  void Finish(bool eos, TokenEvent& event);

  // A token as logprobs show it, at the present offset.
  TokenLogprob Describe(int32_t token) const;
  int32_t reasoning_tokens() const { return reasoning_tokens_; }

 private:
  void Show(const std::string& text, TokenEvent& event);

  const Options options_;
  text::Detokenizer detokenizer_;
  StopFilter stop_;
  std::optional<text::ReplyParser> parser_;
  int32_t offset_ = 0;  // characters so far
  int32_t reasoning_tokens_ = 0;
};

}  // namespace conclave
