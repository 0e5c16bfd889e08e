// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "common/checkpoint/checkpoint.h"

namespace conclave::checkpoint {

// InvalidArgument "FILE: tensor NAME: what".
absl::Status BadTensor(const TensorView& tensor, std::string_view what);

// A BadTensor if one of the e4m3 codes is not a number.
absl::Status CheckFp8Codes(std::span<const std::byte> codes,
                           const TensorView& tensor);

// A BadTensor if a half-precision number, of the tensor's dtype, is infinite
// or none.
absl::Status CheckFinite(std::span<const std::byte> halves,
                         const TensorView& tensor);

}  // namespace conclave::checkpoint
