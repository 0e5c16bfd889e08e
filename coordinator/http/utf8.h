// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace conclave::http {

// Length of the valid UTF-8 sequence at the front of `text`, 0 if there is
// none (overlong forms, surrogates and values over U+10FFFF are invalid).
size_t Utf8SequenceLength(std::string_view text);

// Offset of the first byte that is no UTF-8; npos if all is well.
size_t FirstInvalidUtf8(std::string_view text);

// Bytes that are no UTF-8 become U+FFFD: tokens may end inside a character.
std::string ToUtf8Lossy(std::string_view bytes);

}  // namespace conclave::http
