// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/fp8.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/tensor_list.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

constexpr uint16_t kBf16Exponent = 0x7F80;  // all ones: infinite or no number

absl::Status Bad(const TensorView& tensor, const char* what) {
  return absl::InvalidArgumentError(
      absl::StrCat(tensor.file, ": tensor ", tensor.name, ": ", what));
}

}  // namespace

absl::StatusOr<std::vector<uint16_t>> ReadFp8Scales(
    const Checkpoint& checkpoint, std::string_view weight) {
  ASSIGN_OR_RETURN(const TensorView tensor,
                   checkpoint.Find(absl::StrCat(std::string(weight),
                                                std::string(kScaleSuffix))));
  std::vector<uint16_t> out(tensor.data.size() / sizeof(uint16_t));
  RETURN_IF_ERROR(
      checkpoint.ReadBytes(tensor, 0, std::as_writable_bytes(std::span(out))));
  const bool finite = std::all_of(out.begin(), out.end(), [](uint16_t scale) {
    return (scale & kBf16Exponent) != kBf16Exponent;
  });
  if (!finite) return Bad(tensor, "has a scale that is no finite number");
  return out;
}

absl::Status CheckFp8Codes(std::span<const std::byte> codes,
                           const TensorView& tensor) {
  // No early end, so that the compiler may take many at a time.
  uint8_t bad = 0;
  for (const std::byte code : codes) {
    const auto magnitude = static_cast<uint8_t>(code) & 0x7F;
    bad |= static_cast<uint8_t>(magnitude == 0x7F);
  }
  return bad == 0 ? absl::OkStatus() : Bad(tensor, "has an FP8 NaN");
}

}  // namespace conclave::checkpoint
