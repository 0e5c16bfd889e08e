// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/tensor_check.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace conclave::checkpoint {

absl::Status BadTensor(const TensorView& tensor, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(
      tensor.file, ": tensor ", tensor.name, ": ", std::string(what)));
}

absl::Status CheckFp8Codes(std::span<const std::byte> codes,
                           const TensorView& tensor) {
  // No early end, so that the compiler may take many at a time.
  uint8_t bad = 0;
  for (const std::byte code : codes) {
    const auto magnitude = static_cast<uint8_t>(code) & 0x7F;
    bad |= static_cast<uint8_t>(magnitude == 0x7F);
  }
  return bad == 0 ? absl::OkStatus() : BadTensor(tensor, "has an FP8 NaN");
}

absl::Status CheckFinite(std::span<const std::byte> halves,
                         const TensorView& tensor) {
  // All ones in the exponent: infinite or no number.
  const uint16_t exponent = tensor.dtype == DType::kF16 ? 0x7C00 : 0x7F80;
  bool bad = false;
  for (size_t i = 0; i + 1 < halves.size(); i += sizeof(uint16_t)) {
    uint16_t bits;
    std::memcpy(&bits, halves.data() + i, sizeof(bits));
    bad |= (bits & exponent) == exponent;
  }
  return bad ? BadTensor(tensor, "has a number that is not finite")
             : absl::OkStatus();
}

}  // namespace conclave::checkpoint
