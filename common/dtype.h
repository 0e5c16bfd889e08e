// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave {

// Element types of tensors. The values travel in frames: never renumber.
enum class DType : uint8_t {
  kF32 = 0,
  kBF16 = 1,
  kF16 = 2,
  kI8 = 3,
  kU8 = 4,
  kI32 = 5,
  kU32 = 6,
  kI64 = 7,
  kF8E4M3 = 8,
};

// kF8E4M3 weights have a scale per square block of so many rows and columns.
inline constexpr int32_t kFp8Block = 128;
constexpr int64_t Fp8Blocks(int64_t elements) {
  return (elements + kFp8Block - 1) / kFp8Block;
}

size_t SizeOf(DType dtype);

// The safetensors spelling: "F32", "BF16", ...
std::string_view Name(DType dtype);

// InvalidArgument for a name that is not in the list above.
absl::StatusOr<DType> DTypeFromName(std::string_view name);

}  // namespace conclave
