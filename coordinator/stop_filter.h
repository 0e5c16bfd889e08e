// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace conclave {

// Finds stop strings in streamed text. Holds back only what may still become
// one, so at most the longest stop string less one byte.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);

  // Text that may be shown. After a match (stopped() is true) it is the text
  // before the stop string, and nothing more is let through.
  std::string Push(std::string_view text);
  // The end came: what is held back.
  std::string Finish();
  bool stopped() const { return stopped_; }

 private:
  const std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace conclave
