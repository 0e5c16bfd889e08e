// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace conclave::config {

// A whole file. NotFound: it cannot be opened; InvalidArgument: it is larger.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

}  // namespace conclave::config
