// SPDX-License-Identifier: Apache-2.0
#include "common/delivery/deliver_frame.h"

#include <cstring>

#include "common/status_macros.h"

namespace conclave::delivery {

Buffer MakeFrame(const v1::DeliverHeader& header,
                 uint64_t bytes,
                 std::span<std::byte>* body) {
  const std::string text = header.SerializeAsString();
  const auto length = static_cast<uint32_t>(text.size());
  Buffer out(sizeof(length) + text.size() + bytes);
  std::memcpy(out.data(), &length, sizeof(length));
  std::memcpy(out.data() + sizeof(length), text.data(), text.size());
  *body = out.bytes().subspan(sizeof(length) + text.size());
  return out;
}

absl::StatusOr<DeliverFrame> ParseFrame(std::string_view frame) {
  const auto bad = [] {
    return absl::InvalidArgumentError("deliver: the frame cannot be parsed");
  };
  uint32_t length = 0;
  if (frame.size() < sizeof(length)) return bad();
  std::memcpy(&length, frame.data(), sizeof(length));
  frame.remove_prefix(sizeof(length));
  DeliverFrame out;
  if (length > frame.size() ||
      !out.header.ParseFromArray(frame.data(), static_cast<int>(length))) {
    return bad();
  }
  out.body = std::as_bytes(std::span(frame.substr(length)));
  return out;
}

}  // namespace conclave::delivery
