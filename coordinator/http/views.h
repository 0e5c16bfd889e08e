// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace conclave::http {

// Debian 12's Abseil is built with a string_view of its own, which does not
// take the standard one.
inline absl::string_view Abs(std::string_view text) {
  return {text.data(), text.size()};
}
inline std::string_view Std(absl::string_view text) {
  return {text.data(), text.size()};
}

}  // namespace conclave::http
