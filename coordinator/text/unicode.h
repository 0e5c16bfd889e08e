// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave::text {

// What the pre-tokenizer asks of a character: \p{L}, \p{M}, \p{N}, White_Space,
// or none of them.
enum class CharClass : uint8_t { kLetter, kMark, kNumber, kSpace, kOther };
CharClass ClassOf(int32_t codepoint);

// One step of decoding UTF-8 the way Python's errors="replace" does.
struct Utf8Step {
  int32_t codepoint =
      -1;             // -1: invalid (then U+FFFD stands for `length` bytes)
  size_t length = 0;  // bytes taken; 0: incomplete at the end of the text
};
Utf8Step NextUtf8(std::string_view text);

// Offset of the first byte that is no UTF-8, or npos.
size_t FindInvalidUtf8(std::string_view text);

// Unicode normal form C. `text` must be UTF-8.
absl::StatusOr<std::string> ToNfc(std::string_view text);

// str.strip() of Python: whitespace of any script, both ends.
std::string_view StripSpace(std::string_view text);

}  // namespace conclave::text
