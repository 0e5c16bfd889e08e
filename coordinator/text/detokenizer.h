// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace conclave::text {

// Token bytes in, whole UTF-8 out: holds back an incomplete trailing sequence;
// invalid bytes become U+FFFD as Python's errors="replace" does.
class Detokenizer {
 public:
  std::string Push(std::string_view token_bytes);
  // What is still held back, replaced.
  std::string Finish();

 private:
  std::string held_;
};

}  // namespace conclave::text
