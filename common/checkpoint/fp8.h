// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace conclave::checkpoint {

// FP8 weights: e4m3 with a bf16 scale per block (docs/qwen3.5-moe 2.4).
// The scales that belong to an FP8 weight, finite. InvalidArgument names the
// tensor.
absl::StatusOr<std::vector<uint16_t>> ReadFp8Scales(
    const Checkpoint& checkpoint, std::string_view weight);

// InvalidArgument if one of the codes is not a number.
absl::Status CheckFp8Codes(std::span<const std::byte> codes,
                           const TensorView& tensor);

}  // namespace conclave::checkpoint
