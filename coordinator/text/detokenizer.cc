// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/detokenizer.h"

#include "coordinator/text/unicode.h"

namespace conclave::text {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

std::string Detokenizer::Push(std::string_view token_bytes) {
  held_.append(token_bytes);
  std::string out;
  size_t at = 0;
  while (at < held_.size()) {
    const std::string_view rest = std::string_view(held_).substr(at);
    const Utf8Step step = NextUtf8(rest);
    if (step.length == 0) break;  // incomplete
    out.append(step.codepoint < 0 ? kReplacement : rest.substr(0, step.length));
    at += step.length;
  }
  held_.erase(0, at);
  return out;
}

std::string Detokenizer::Finish() {
  // What is held is the valid beginning of one character.
  const bool any = !held_.empty();
  held_.clear();
  return any ? std::string(kReplacement) : std::string();
}

}  // namespace conclave::text
