// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/pretokenizer.h"

#include <array>
#include <cstdint>

#include "coordinator/text/unicode.h"

namespace conclave::text {
namespace {

struct Char {
  int32_t codepoint;
  CharClass kind;
  size_t offset;  // in the text
};

class Matcher {
 public:
  explicit Matcher(std::string_view text) : text_(text) {
    for (size_t at = 0; at < text.size();) {
      const Utf8Step step = NextUtf8(text.substr(at));
      const size_t length = step.length == 0 ? 1 : step.length;
      chars_.push_back({step.codepoint, ClassOf(step.codepoint), at});
      at += length;
    }
  }

  std::vector<std::string_view> Run() {
    std::vector<std::string_view> pieces;
    for (size_t p = 0; p < chars_.size();) {
      const size_t q = End(p);
      pieces.push_back(text_.substr(Offset(p), Offset(q) - Offset(p)));
      p = q;
    }
    return pieces;
  }

 private:
  size_t Offset(size_t i) const {
    return i < chars_.size() ? chars_[i].offset : text_.size();
  }
  bool Is(size_t i, CharClass kind) const {
    return i < chars_.size() && chars_[i].kind == kind;
  }
  bool IsWord(size_t i) const {
    return Is(i, CharClass::kLetter) || Is(i, CharClass::kMark);
  }
  bool IsBreak(size_t i) const {
    return i < chars_.size() &&
           (chars_[i].codepoint == '\r' || chars_[i].codepoint == '\n');
  }
  // Lower case of ASCII; U+017F folds to s.
  int32_t Folded(size_t i) const {
    if (i >= chars_.size()) return 0;
    const int32_t c = chars_[i].codepoint;
    if (c >= 'A' && c <= 'Z') return c - 'A' + 'a';
    return c == 0x17f ? 's' : c;
  }

  // End of the contraction at p ('s 't 're 've 'm 'll 'd), or p.
  size_t Contraction(size_t p) const {
    static constexpr std::array<std::string_view, 7> kTails = {
        "s", "t", "re", "ve", "m", "ll", "d"};
    if (chars_[p].codepoint != '\'') return p;
    for (const std::string_view tail : kTails) {
      size_t i = 0;
      while (i < tail.size() && Folded(p + 1 + i) == tail[i]) ++i;
      if (i == tail.size()) return p + 1 + i;
    }
    return p;
  }

  size_t SpaceEnd(size_t p) const {
    size_t r = p;
    size_t after_break = p;
    for (; Is(r, CharClass::kSpace); ++r) {
      if (IsBreak(r)) after_break = r + 1;
    }
    if (after_break > p) return after_break;
    if (r == chars_.size() || r - p == 1) return r;
    return r - 1;
  }

  // End of the piece that begins at p; the first rule that applies wins.
  size_t End(size_t p) const {
    if (const size_t q = Contraction(p); q > p) return q;
    const bool may_lead =
        !IsBreak(p) && !Is(p, CharClass::kLetter) && !Is(p, CharClass::kNumber);
    size_t q = may_lead && IsWord(p + 1) ? p + 1 : p;
    if (IsWord(q)) {
      while (IsWord(q)) ++q;
      return q;
    }
    if (Is(p, CharClass::kNumber)) return p + 1;
    q = chars_[p].codepoint == ' ' ? p + 1 : p;
    if (Is(q, CharClass::kOther)) {
      while (Is(q, CharClass::kOther)) ++q;
      while (IsBreak(q)) ++q;
      return q;
    }
    return SpaceEnd(p);
  }

  std::string_view text_;
  std::vector<Char> chars_;
};

}  // namespace

std::vector<std::string_view> Pretokenize(std::string_view text) {
  return Matcher(text).Run();
}

}  // namespace conclave::text
