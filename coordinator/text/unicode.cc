// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/unicode.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"

namespace conclave::text {
namespace {

bool IsSpace(int32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

// Python's str.isspace has the four information separators too.
bool IsPythonSpace(int32_t c) { return IsSpace(c) || (c >= 0x1c && c <= 0x1f); }

}  // namespace

CharClass ClassOf(int32_t codepoint) {
  if (IsSpace(codepoint)) return CharClass::kSpace;
  switch (utf8proc_category(codepoint)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharClass::kLetter;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return CharClass::kMark;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharClass::kNumber;
    default:
      return CharClass::kOther;
  }
}

Utf8Step NextUtf8(std::string_view text) {
  if (text.empty()) return {};
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return {first, 1};
  // Bounds of the second byte exclude overlong forms, surrogates and what lies
  // over U+10FFFF; so an invalid sequence ends at its first wrong byte.
  size_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xbf;
  if (first >= 0xc2 && first <= 0xdf) {
    length = 2;
  } else if (first >= 0xe0 && first <= 0xef) {
    length = 3;
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f;
  } else if (first >= 0xf0 && first <= 0xf4) {
    length = 4;
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
  } else {
    return {-1, 1};
  }
  int32_t codepoint = first & (0xff >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {-1, 0};
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte < low || byte > high) return {-1, i};
    low = 0x80;
    high = 0xbf;
    codepoint = codepoint << 6 | (byte & 0x3f);
  }
  return {codepoint, length};
}

size_t FindInvalidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (step.codepoint < 0) return at;
    at += step.length;
  }
  return std::string_view::npos;
}

absl::StatusOr<std::string> ToNfc(std::string_view text) {
  uint8_t* raw = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()),
      &raw,
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Unicode: ", utf8proc_errmsg(size)));
  }
  const std::unique_ptr<uint8_t, void (*)(void*)> owner(raw, std::free);
  return std::string(reinterpret_cast<const char*>(raw),
                     static_cast<size_t>(size));
}

std::string_view StripSpace(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (!IsPythonSpace(step.codepoint)) break;
    text.remove_prefix(step.length);
  }
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80) {
      --begin;
    }
    if (!IsPythonSpace(NextUtf8(text.substr(begin)).codepoint)) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

}  // namespace conclave::text
