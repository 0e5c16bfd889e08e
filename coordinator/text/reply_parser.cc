// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/reply_parser.h"

#include <algorithm>
#include <boost/json.hpp>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/tool_markup.h"
#include "coordinator/text/tool_value.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr std::string_view kBlanks = " \t\r\n";
constexpr std::string_view kThink = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kBlockEnd = "</tool_call>";
constexpr std::string_view kFunctionEnd = "</function>";
constexpr std::string_view kParameterEnd = "</parameter>";
// Blanks that may stand before a think block that opens the reply.
constexpr size_t kLeadBlanksMax = 16;

// One newline on each side belongs to the markup.
std::string_view Unwrap(std::string_view value) {
  if (!value.empty() && value.front() == '\n') value.remove_prefix(1);
  if (!value.empty() && value.back() == '\n') value.remove_suffix(1);
  return value;
}

// Markup that the end of the reply cut off: "</par".
bool IsCutMarker(std::string_view text) {
  if (text.size() < 3) return false;  // "<", "</": as likely the value's own
  for (const std::string_view marker :
       {kParameterEnd, kFunctionEnd, kBlockEnd}) {
    if (MatchMarker(text, marker) == Match::kMaybe) return true;
  }
  return false;
}

}  // namespace

// A state machine over `held`, the text that is not decided yet. Whether it
// goes on or waits depends on the text alone, never on how it was cut.
struct ReplyParser::Impl {
  enum class State : uint8_t { kStart, kText, kBody, kValue };

  // One step at the start of held: false when more text is needed.
  bool Step();
  bool StepStart();
  bool StepText();
  bool StepBody();
  bool StepValue();
  // The markup at held's start ('<') in plain text.
  Match TextMarkup();
  void Run();

  void EmitText(std::string_view text);
  void Append(std::string_view text);
  void EndReasoning();
  void DropBlanks();
  void BeginCall(const Found& found);
  void EndValue();
  void EndCall(bool function_closed, bool block_closed);
  void AppendArguments(std::string_view text);

  void Take(size_t bytes) { at += bytes; }
  std::string_view Rest() const { return std::string_view(held).substr(at); }

  std::string id_prefix;
  std::vector<std::string> names;
  std::vector<json::object> schemas;  // of the parameters, by tool

  State state = State::kStart;
  bool reasoning = false;
  bool is_end = false;
  std::string held;
  size_t at = 0;  // bytes of held that are done

  // Of plain text.
  size_t newlines = 0;         // held back: they may stand before a marker
  int skip_newlines = 0;       // the next ones belong to the format
  bool after_call = false;     // only blanks so far since a call
  std::string blanks;          // those
  bool open_function = false;  // closers that a call still misses
  bool open_block = false;

  // Of the call.
  int32_t calls = 0;
  size_t tool = 0;
  absl::flat_hash_set<std::string> keys;  // that it has got
  std::string key;
  std::string value;

  ReplyPiece out;
};

void ReplyParser::Impl::Append(std::string_view text) {
  (reasoning ? out.reasoning : out.content) += text;
}

void ReplyParser::Impl::EmitText(std::string_view text) {
  while (skip_newlines > 0 && !text.empty()) {
    if (text.front() == '\n') {
      text.remove_prefix(1);
      --skip_newlines;
    } else {
      skip_newlines = 0;
    }
  }
  if (after_call) {
    const size_t end = std::min(text.find_first_not_of(kBlanks), text.size());
    blanks += text.substr(0, end);
    text.remove_prefix(end);
    if (text.empty()) return;
    Append(std::exchange(blanks, {}));
    after_call = false;
  }
  if (text.empty()) return;
  // Newlines before a call go away, and one before </think>.
  const size_t most = !names.empty() ? std::numeric_limits<size_t>::max()
                      : reasoning    ? 1
                                     : 0;
  const size_t last = text.find_last_not_of('\n');
  const size_t body = last == text.npos ? 0 : last + 1;
  size_t total = text.size() - body;
  if (body == 0) {
    total += newlines;
  } else {
    Append(std::string(newlines, '\n'));
    Append(text.substr(0, body));
  }
  newlines = std::min(total, most);
  Append(std::string(total - newlines, '\n'));
}

void ReplyParser::Impl::DropBlanks() {
  newlines = 0;
  blanks.clear();
}

void ReplyParser::Impl::EndReasoning() {
  if (newlines > 0) Append(std::string(newlines - 1, '\n'));
  DropBlanks();
  reasoning = false;
  skip_newlines = 2;
}

void ReplyParser::Impl::AppendArguments(std::string_view text) {
  const int32_t index = calls - 1;
  if (out.tool_calls.empty() || out.tool_calls.back().index != index) {
    out.tool_calls.push_back({index, "", "", ""});
  }
  out.tool_calls.back().arguments += text;
}

void ReplyParser::Impl::BeginCall(const Found& found) {
  DropBlanks();
  skip_newlines = 0;
  tool = found.tool;
  keys.clear();
  out.tool_calls.push_back(
      {calls, absl::StrCat(id_prefix, calls), names[tool], ""});
  ++calls;
  Take(found.length);
  state = State::kBody;
}

void ReplyParser::Impl::EndValue() {
  state = State::kBody;
  std::string text = keys.empty() ? "{" : ",";
  // Deltas cannot be taken back: of a repeated parameter the first one counts.
  if (!keys.insert(key).second) return;
  absl::StrAppend(&text,
                  json::serialize(json::value(key)),
                  ":",
                  ToolValueJson(Unwrap(value), schemas[tool].if_contains(key)));
  AppendArguments(text);
}

void ReplyParser::Impl::EndCall(bool function_closed, bool block_closed) {
  AppendArguments(keys.empty() ? "{}" : "}");
  open_function = !function_closed;
  open_block = !block_closed;
  after_call = true;
  state = State::kText;
}

bool ReplyParser::Impl::StepStart() {
  const std::string_view rest = Rest();
  const size_t lead = std::min(rest.find_first_not_of(kBlanks), rest.size());
  Match match = MatchMarker(rest.substr(lead), kThink);
  if (lead > kLeadBlanksMax) match = Match::kNo;
  if (match == Match::kMaybe && !is_end) return false;
  state = State::kText;
  if (match == Match::kYes) {
    Take(lead + kThink.size());
    reasoning = true;
  }
  if (reasoning) skip_newlines = 1;
  return true;
}

Match ReplyParser::Impl::TextMarkup() {
  const std::string_view rest = Rest();
  bool maybe = false;
  const auto is = [&](std::string_view marker) {
    const Match match = MatchMarker(rest, marker);
    maybe |= match == Match::kMaybe;
    return match == Match::kYes;
  };
  if (reasoning && is(kThinkEnd)) {
    Take(kThinkEnd.size());
    EndReasoning();
    return Match::kYes;
  }
  if (names.empty()) return maybe ? Match::kMaybe : Match::kNo;
  const Found call = MatchCall(rest, names, is_end);
  if (call.match == Match::kYes) {
    BeginCall(call);
    return Match::kYes;
  }
  maybe |= call.match == Match::kMaybe;
  if (open_function && is(kFunctionEnd)) {
    Take(kFunctionEnd.size());
    open_function = false;
  } else if (open_block && is(kBlockEnd)) {
    Take(kBlockEnd.size());
    open_function = open_block = false;
  } else if (is_end && after_call && open_block &&
             MatchMarker(rest, kBlockEnd) == Match::kMaybe) {
    Take(rest.size());  // a closer that the end of the reply cut off
  } else {
    return maybe ? Match::kMaybe : Match::kNo;
  }
  DropBlanks();
  after_call = true;
  return Match::kYes;
}

bool ReplyParser::Impl::StepText() {
  const std::string_view rest = Rest();
  const size_t plain = std::min(rest.find('<'), rest.size());
  if (plain > 0) {
    EmitText(rest.substr(0, plain));
    Take(plain);
    return true;
  }
  const Match match = TextMarkup();
  if (match == Match::kMaybe && !is_end) return false;
  if (match != Match::kYes) {
    EmitText("<");
    Take(1);
  }
  return true;
}

// Between the parameters of a call.
bool ReplyParser::Impl::StepBody() {
  const std::string_view rest = Rest();
  const size_t blank = std::min(rest.find_first_not_of(kBlanks), rest.size());
  if (blank > 0) {
    Take(blank);
    return true;
  }
  bool maybe = false;
  const auto is = [&](std::string_view marker) {
    const Match match = MatchMarker(rest, marker);
    maybe |= match == Match::kMaybe;
    return match == Match::kYes;
  };
  const Found parameter = MatchParameter(rest);
  maybe |= parameter.match == Match::kMaybe;
  if (parameter.match == Match::kYes) {
    key = std::string(parameter.name);
    value.clear();
    Take(parameter.length);
    state = State::kValue;
  } else if (is(kParameterEnd)) {
    Take(kParameterEnd.size());
  } else if (is(kFunctionEnd)) {
    Take(kFunctionEnd.size());
    EndCall(true, false);
  } else if (is(kBlockEnd)) {
    Take(kBlockEnd.size());
    EndCall(true, true);
  } else if (maybe) {
    if (!is_end) return false;
    Take(rest.size());  // markup that the end of the reply cut off
  } else {
    // Anything else: the call's closers are missing.
    EndCall(false, false);
  }
  return true;
}

bool ReplyParser::Impl::StepValue() {
  const std::string_view rest = Rest();
  const size_t plain = std::min(rest.find('<'), rest.size());
  if (plain > 0) {
    value += rest.substr(0, plain);
    Take(plain);
    return true;
  }
  bool maybe = false;
  const auto is = [&](Match match) {
    maybe |= match == Match::kMaybe;
    return match == Match::kYes;
  };
  // What can only follow a value whose closer is missing. Inside of a line it
  // is the value's own; so is a lone <function=..>.
  const bool at_line = value.empty() || value.back() == '\n';
  if (is(MatchMarker(rest, kParameterEnd))) {
    Take(kParameterEnd.size());
    EndValue();
  } else if (is(MatchMarker(rest, kBlockEnd)) ||
             (at_line && (is(MatchMarker(rest, kFunctionEnd)) ||
                          is(MatchParameter(rest).match))) ||
             (rest.substr(0, 2) != "<f" &&
              is(MatchCall(rest, names, is_end).match))) {
    EndValue();  // the body sees the marker
  } else if (maybe && !is_end) {
    return false;
  } else if (is_end && IsCutMarker(rest)) {
    Take(rest.size());
  } else {
    value += '<';
    Take(1);
  }
  return true;
}

bool ReplyParser::Impl::Step() {
  switch (state) {
    case State::kStart:
      return StepStart();
    case State::kText:
      return StepText();
    case State::kBody:
      return StepBody();
    case State::kValue:
      return StepValue();
  }
  return false;
}

void ReplyParser::Impl::Run() {
  while (at < held.size() && Step()) {
  }
  held.erase(0, at);
  at = 0;
}

ReplyParser::ReplyParser(bool thinking,
                         std::vector<Tool> tools,
                         std::string id_prefix)
    : impl_(std::make_unique<Impl>()) {
  impl_->reasoning = thinking;
  impl_->id_prefix = std::move(id_prefix);
  for (Tool& tool : tools) {
    impl_->names.push_back(std::move(tool.name));
    impl_->schemas.push_back(ToolProperties(tool.parameters_json));
  }
}

ReplyParser::~ReplyParser() = default;

ReplyPiece ReplyParser::Push(std::string_view text) {
  impl_->held += text;
  impl_->Run();
  return std::exchange(impl_->out, {});
}

ReplyPiece ReplyParser::Finish() {
  Impl& impl = *impl_;
  impl.is_end = true;
  impl.Run();
  if (impl.state == Impl::State::kValue) impl.EndValue();
  if (impl.state == Impl::State::kBody) impl.EndCall(true, true);
  impl.Append(std::string(std::exchange(impl.newlines, 0), '\n'));
  return std::exchange(impl.out, {});
}

int32_t ReplyParser::tool_call_count() const { return impl_->calls; }
bool ReplyParser::in_reasoning() const { return impl_->reasoning; }

}  // namespace conclave::text
