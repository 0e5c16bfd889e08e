// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/reply_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/text/tool_call_parser.h"

namespace conclave::text {
namespace {

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";
constexpr std::string_view kCallOpen = "<tool_call>";
constexpr std::string_view kFunctionOpen = "<function=";

constexpr std::string_view kBlanks = " \n\r\t";
constexpr std::string_view kNewlines = "\n\r";

}  // namespace

// All decisions depend on the text alone, never on how it was cut: a step
// either takes a prefix of `pending` for good or asks for more.
struct ReplyParser::Impl {
  enum class Mode { kStart, kReasoning, kContent, kCall };

  bool Step(bool final, ReplyPiece& out);
  bool StepStart(bool final);
  bool StepText(bool final, ReplyPiece& out);
  bool StepCall(bool final, ReplyPiece& out);
  bool BeginCall(size_t at, bool final, ReplyPiece& out, bool* waits);
  void Emit(std::string_view text, ReplyPiece& out);

  Mode mode = Mode::kStart;
  Mode after_call = Mode::kContent;
  bool thinking = false;
  std::vector<Tool> tools;
  std::string id_prefix;
  std::string pending;         // not decided yet
  std::string held;            // newlines that may turn out to be trailing
  std::string_view skip;       // characters not taken at a part's beginning
  const Tool* tool = nullptr;  // of the call in progress
  int32_t calls = 0;
};

// Does the reply begin with a think block?
bool ReplyParser::Impl::StepStart(bool final) {
  const size_t at =
      std::min(pending.find_first_not_of(kBlanks), pending.size());
  const std::string_view rest = std::string_view(pending).substr(at);
  if (rest.starts_with(kThinkOpen)) {
    pending.erase(0, at + kThinkOpen.size());
    mode = Mode::kReasoning;
    skip = kNewlines;
    return true;
  }
  if (!final && rest.size() < kThinkOpen.size() &&
      kThinkOpen.starts_with(rest)) {
    return false;
  }
  mode = thinking ? Mode::kReasoning : Mode::kContent;
  if (thinking) skip = kNewlines;
  return true;
}

// Appends text of the current part; newlines at its end are held back, since
// those before a closer or a call belong to the format.
void ReplyParser::Impl::Emit(std::string_view text, ReplyPiece& out) {
  if (!skip.empty()) {
    text.remove_prefix(std::min(text.find_first_not_of(skip), text.size()));
    if (text.empty()) return;
    skip = {};
  }
  std::string& to = mode == Mode::kReasoning ? out.reasoning : out.content;
  if (mode == Mode::kContent && tools.empty()) {
    to.append(text);
    return;
  }
  const size_t last = text.find_last_not_of("\n\r");
  if (last == std::string_view::npos) {
    held.append(text);
    return;
  }
  to.append(held);
  to.append(text.substr(0, last + 1));
  held = std::string(text.substr(last + 1));
}

// A call seems to begin at `at`. True when it was decided.
bool ReplyParser::Impl::BeginCall(size_t at,
                                  bool final,
                                  ReplyPiece& out,
                                  bool* waits) {
  const std::string_view rest = std::string_view(pending).substr(at);
  const CallStart start = FindCallStart(rest, tools, final);
  if (start.kind == CallStart::kMore) {
    *waits = true;
    return false;
  }
  if (start.kind == CallStart::kNo) return false;
  Emit(std::string_view(pending).substr(0, at), out);
  held.clear();
  pending.erase(0, at + start.length);
  tool = start.tool;
  after_call = mode;
  mode = Mode::kCall;
  out.tool_calls.push_back({.index = calls,
                            .id = absl::StrCat(id_prefix, calls),
                            .name = tool->name,
                            .arguments = ""});
  return true;
}

bool ReplyParser::Impl::StepText(bool final, ReplyPiece& out) {
  std::vector<std::string_view> markers;
  if (mode == Mode::kReasoning) markers.push_back(kThinkClose);
  if (!tools.empty()) {
    markers.push_back(kCallOpen);
    markers.push_back(kFunctionOpen);
  }
  const std::string_view text = pending;
  for (size_t at = text.find('<'); at != std::string_view::npos;
       at = text.find('<', at + 1)) {
    const std::string_view rest = text.substr(at);
    bool waits = false;
    for (const std::string_view marker : markers) {
      if (rest.starts_with(marker)) {
        if (marker != kThinkClose) {
          if (BeginCall(at, final, out, &waits)) return true;
          continue;
        }
        Emit(text.substr(0, at), out);
        held.clear();
        pending.erase(0, at + kThinkClose.size());
        mode = Mode::kContent;
        skip = kNewlines;
        return true;
      }
      waits |=
          !final && rest.size() < marker.size() && marker.starts_with(rest);
    }
    if (waits) {
      Emit(text.substr(0, at), out);
      pending.erase(0, at);
      return false;
    }
  }
  Emit(text, out);
  pending.clear();
  return false;
}

bool ReplyParser::Impl::StepCall(bool final, ReplyPiece& out) {
  const CallBody body = ParseCallBody(pending, *tool, final);
  if (!body.complete) return false;
  pending.erase(0, body.length);
  out.tool_calls.push_back(
      {.index = calls, .id = "", .name = "", .arguments = body.arguments});
  ++calls;
  mode = after_call;
  skip = kBlanks;
  return true;
}

// True: made progress and can go on.
bool ReplyParser::Impl::Step(bool final, ReplyPiece& out) {
  if (pending.empty() && !(final && mode == Mode::kCall)) return false;
  switch (mode) {
    case Mode::kStart:
      return StepStart(final);
    case Mode::kCall:
      return StepCall(final, out);
    default:
      return StepText(final, out);
  }
}

ReplyParser::ReplyParser(bool thinking,
                         std::vector<Tool> tools,
                         std::string id_prefix)
    : impl_(std::make_unique<Impl>()) {
  impl_->thinking = thinking;
  impl_->tools = std::move(tools);
  impl_->id_prefix = std::move(id_prefix);
}

ReplyParser::~ReplyParser() = default;

ReplyPiece ReplyParser::Push(std::string_view text) {
  ReplyPiece out;
  impl_->pending.append(text);
  while (impl_->Step(false, out)) {
  }
  return out;
}

ReplyPiece ReplyParser::Finish() {
  ReplyPiece out;
  while (impl_->Step(true, out)) {
  }
  // Nothing followed the held newlines: they are the model's.
  const bool reasoning = impl_->mode == Impl::Mode::kReasoning;
  (reasoning ? out.reasoning : out.content) += impl_->held;
  impl_->held.clear();
  return out;
}

int32_t ReplyParser::tool_call_count() const { return impl_->calls; }

bool ReplyParser::in_reasoning() const {
  if (impl_->mode == Impl::Mode::kStart) return impl_->thinking;
  return impl_->mode == Impl::Mode::kReasoning;
}

}  // namespace conclave::text
