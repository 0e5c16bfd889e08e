// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "conclave/v1/delivery.pb.h"

namespace conclave::delivery {

// Most bytes of a slice in one frame: a lost one costs little, and the
// exchange on the same wire waits for no longer than this takes.
inline constexpr uint64_t kPieceBytes = uint64_t{1} << 20;

// u32 length of the header, header, room for `bytes` bytes to be filled in.
// `body` is that room.
Buffer MakeFrame(const v1::DeliverHeader& header,
                 uint64_t bytes,
                 std::span<std::byte>* body);

// Views into `frame`. InvalidArgument: cut off, or no such header.
struct DeliverFrame {
  v1::DeliverHeader header;
  std::span<const std::byte> body;
};
absl::StatusOr<DeliverFrame> ParseFrame(std::string_view frame);

}  // namespace conclave::delivery
