// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace conclave::checkpoint {

// 32 bytes, not hex.
std::string Sha256(std::string_view bytes);

}  // namespace conclave::checkpoint
