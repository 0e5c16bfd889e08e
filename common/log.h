// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace conclave::log {

// One line each, to standard error, with time and level. Thread-safe. The only
// way that libraries of ours say something to the operator.
void Debug(std::string_view message);
void Info(std::string_view message);
void Warning(std::string_view message);
void Error(std::string_view message);

// "debug", "info" (default), "warning", "error", "off"; false for others.
bool SetLevel(std::string_view level);

}  // namespace conclave::log
