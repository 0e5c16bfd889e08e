// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "common/checkpoint/checkpoint.h"

namespace conclave::checkpoint {

// InvalidArgument, which names the tensor, if one of the e4m3 codes is not a
// number.
absl::Status CheckFp8Codes(std::span<const std::byte> codes,
                           const TensorView& tensor);

}  // namespace conclave::checkpoint
