// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

namespace conclave {

// "0.1.0", from the file VERSION.
std::string_view Version();

// Of control plane and exchange frames; both sides must have the same.
inline constexpr uint32_t kProtocolVersion = 2;

}  // namespace conclave
