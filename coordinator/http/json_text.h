// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "boost/json/value.hpp"

namespace conclave::http {

// Parses one JSON text. Stricter than the library: a key that stands twice in
// an object, nesting over limits::kJsonDepthMax and bytes that are no UTF-8 are
// InvalidArgument "WHAT: byte 17: ...".
absl::StatusOr<boost::json::value> ParseJson(std::string_view text,
                                             std::string_view what);

}  // namespace conclave::http
