// SPDX-License-Identifier: Apache-2.0
#include "coordinator/reply_stream.h"

#include <algorithm>
#include <utility>

namespace conclave {
namespace {

int32_t Characters(std::string_view utf8) {
  return static_cast<int32_t>(
      std::count_if(utf8.begin(), utf8.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
      }));
}

}  // namespace

ReplyStream::ReplyStream(Options options)
    : options_(std::move(options)), stop_(options_.stop) {
  if (options_.parse) {
    parser_.emplace(options_.thinking, options_.tools, options_.id_prefix);
  }
}

void ReplyStream::Echo(std::span<const int32_t> prompt, TokenEvent& event) {
  text::Detokenizer detokenizer;
  for (const int32_t id : prompt) {
    event.content += detokenizer.Push(options_.tokenizer->Bytes(id));
  }
  event.content += detokenizer.Finish();
  offset_ = Characters(event.content);
}

TokenLogprob ReplyStream::Describe(int32_t token) const {
  TokenLogprob out;
  out.id = token;
  out.bytes = std::string(options_.tokenizer->Bytes(token));
  out.text_offset = offset_;
  return out;
}

void ReplyStream::Show(const std::string& text, TokenEvent& event) {
  if (!parser_) {
    event.content += text;
    return;
  }
  text::ReplyPiece piece = parser_->Push(text);
  event.content += piece.content;
  event.reasoning += piece.reasoning;
  for (ToolCallDelta& call : piece.tool_calls) {
    event.tool_calls.push_back(std::move(call));
  }
}

bool ReplyStream::Push(int32_t token, TokenEvent& event) {
  if (parser_ && parser_->in_reasoning()) ++reasoning_tokens_;
  if (options_.tokenizer->IsSpecial(token)) return false;
  const std::string text = detokenizer_.Push(options_.tokenizer->Bytes(token));
  offset_ += Characters(text);
  Show(stop_.Push(text), event);
  return stop_.stopped();
}

void ReplyStream::Finish(bool eos, TokenEvent& event) {
  if (!stop_.stopped()) {
    Show(stop_.Push(detokenizer_.Finish()), event);
    Show(stop_.Finish(), event);
  }
  if (parser_) {
    text::ReplyPiece piece = parser_->Finish();
    event.content += piece.content;
    event.reasoning += piece.reasoning;
    for (ToolCallDelta& call : piece.tool_calls) {
      event.tool_calls.push_back(std::move(call));
    }
  }
  event.finish = eos ? FinishReason::kStop : FinishReason::kLength;
  if (eos && parser_ && parser_->tool_call_count() > 0) {
    event.finish = FinishReason::kToolCalls;
  }
  event.reasoning_tokens = reasoning_tokens_;
}

}  // namespace conclave
