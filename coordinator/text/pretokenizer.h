// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <vector>

namespace conclave::text {

// Cuts NFC text into the pieces that BPE works on: the Qwen3.5 expression
// (docs/qwen3.5-moe 4.1), matched by hand. The pieces cover the text, which
// must be UTF-8.
std::vector<std::string_view> Pretokenize(std::string_view text);

}  // namespace conclave::text
