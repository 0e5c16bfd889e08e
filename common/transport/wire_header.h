// SPDX-License-Identifier: Apache-2.0
#pragma once

// Of wire*.cc alone: the header that all frames share.

#include <bit>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/transport/wire.h"

namespace conclave::transport {

static_assert(std::endian::native == std::endian::little,
              "frames are little-endian and read in place");

constexpr size_t kAlign = 8;
// docs/contracts/wire.md.
struct Header {
  uint32_t magic;
  uint16_t version;
  uint8_t kind;
  uint8_t zero0;
  uint64_t frame_bytes;
  uint64_t generation;
  uint64_t step;
  int32_t layer;
  int32_t shards;  // of an error: the code
  int32_t rows;    // of an error: bytes of the message; of a probe: asked for
  int32_t hidden;
  uint8_t dtype;
  uint8_t reply_dtype;
  uint16_t zero1;
  uint32_t zero2;
};
static_assert(sizeof(Header) == 56 && sizeof(Header) % kAlign == 0);

constexpr uint64_t Padded(uint64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("exchange frame: ", parts...));
}

// Checks what all kinds have in common.
absl::StatusOr<Header> ReadHeader(std::span<const std::byte> frame);
// And that it is of this kind, and aligned to 8.
absl::StatusOr<Header> ReadHeader(std::span<const std::byte> frame,
                                  FrameKind kind);

Header MakeHeader(FrameKind kind, const FrameTag& tag, size_t bytes);
FrameTag TagOf(const Header& header);

}  // namespace conclave::transport
