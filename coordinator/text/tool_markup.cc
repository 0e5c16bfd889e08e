// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/tool_markup.h"

#include <algorithm>

namespace conclave::text {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";
// Between the tags of a call's head; the format has one newline.
constexpr size_t kBlanksMax = 64;
constexpr size_t kKeyBytesMax = 256;

// Moves past blanks. kYes: something else follows.
Match SkipBlanks(std::string_view text, size_t& at) {
  const size_t end = std::min(text.find_first_not_of(kBlanks, at), text.size());
  if (end - at > kBlanksMax) return Match::kNo;
  at = end;
  return end == text.size() ? Match::kMaybe : Match::kYes;
}

// "NAME>" with one of the names. The name may be any text without '>'.
Match MatchName(std::string_view text,
                const std::vector<std::string>& names,
                size_t& tool) {
  bool maybe = false;
  for (tool = 0; tool < names.size(); ++tool) {
    const std::string& name = names[tool];
    const Match match = MatchMarker(text, name);
    if (match == Match::kMaybe || text == name) {
      maybe = true;
    } else if (match == Match::kYes && text[name.size()] == '>') {
      return Match::kYes;
    }
  }
  return maybe ? Match::kMaybe : Match::kNo;
}

// What may follow the head of a call.
Match MatchBodyStart(std::string_view text) {
  Match best = Match::kNo;
  for (const std::string_view marker : {"<parameter=",
                                        "</function>",
                                        "</tool_call>",
                                        "<tool_call>",
                                        "<function=",
                                        "</think>"}) {
    best = std::max(best, MatchMarker(text, marker));
  }
  return best;
}

}  // namespace

Match MatchMarker(std::string_view text, std::string_view marker) {
  if (text.size() >= marker.size()) {
    return text.substr(0, marker.size()) == marker ? Match::kYes : Match::kNo;
  }
  return marker.substr(0, text.size()) == text ? Match::kMaybe : Match::kNo;
}

Found MatchCall(std::string_view text,
                const std::vector<std::string>& names,
                bool is_end) {
  constexpr std::string_view kBlock = "<tool_call>", kHead = "<function=";
  const auto result = [&](Match match) {
    Found found;
    found.match = is_end && match == Match::kMaybe ? Match::kNo : match;
    return found;
  };
  size_t at = 0;
  const Match block = MatchMarker(text, kBlock);
  if (block == Match::kMaybe) return result(Match::kMaybe);
  if (block == Match::kYes) {
    at = kBlock.size();
    const Match blanks = SkipBlanks(text, at);
    if (blanks != Match::kYes) return result(blanks);
  }
  const Match head = MatchMarker(text.substr(at), kHead);
  if (head != Match::kYes) return result(head);
  at += kHead.size();
  Found found;
  const Match name = MatchName(text.substr(at), names, found.tool);
  if (name != Match::kYes) return result(name);
  found.name = names[found.tool];
  at += found.name.size() + 1;

  Match body = SkipBlanks(text, at);
  if (body == Match::kYes) body = MatchBodyStart(text.substr(at));
  // Cut off behind its head, a call in a block is one; a lone tag is prose.
  if (body == Match::kMaybe && is_end && block == Match::kYes) {
    body = Match::kYes;
  }
  if (body != Match::kYes) return result(body);
  found.match = Match::kYes;
  found.length = at;
  return found;
}

Found MatchParameter(std::string_view text) {
  constexpr std::string_view kHead = "<parameter=";
  Found found;
  found.match = MatchMarker(text, kHead);
  if (found.match != Match::kYes) return found;
  text.remove_prefix(kHead.size());
  const size_t end = text.substr(0, kKeyBytesMax + 1).find_first_of("<>\n");
  if (end == text.npos) {
    found.match = text.size() > kKeyBytesMax ? Match::kNo : Match::kMaybe;
  } else if (text[end] != '>' || end == 0) {
    found.match = Match::kNo;
  } else {
    found.name = text.substr(0, end);
    found.length = kHead.size() + end + 1;
  }
  return found;
}

}  // namespace conclave::text
