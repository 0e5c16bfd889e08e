// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/fp8.h"

#include <cstdint>

#include "absl/strings/str_cat.h"

namespace conclave::checkpoint {

absl::Status CheckFp8Codes(std::span<const std::byte> codes,
                           const TensorView& tensor) {
  // No early end, so that the compiler may take many at a time.
  uint8_t bad = 0;
  for (const std::byte code : codes) {
    const auto magnitude = static_cast<uint8_t>(code) & 0x7F;
    bad |= static_cast<uint8_t>(magnitude == 0x7F);
  }
  if (bad == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(tensor.file, ": tensor ", tensor.name, ": has an FP8 NaN"));
}

}  // namespace conclave::checkpoint
