// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave::checkpoint {

// Parses a whole document: UTF-8, at most limits::kJsonDepthMax deep, no key
// twice in one object. InvalidArgument starts with `file_name` and says at
// which byte.
absl::StatusOr<boost::json::value> ParseStrictJson(
    std::string_view text, const std::string& file_name);

// Text from a file, fit for an error message: quoted, escaped, cut.
std::string Quoted(std::string_view text);

// Reads a small file; ResourceExhausted above `max_bytes`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes);

}  // namespace conclave::checkpoint
