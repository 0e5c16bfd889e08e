// SPDX-License-Identifier: Apache-2.0
#include "common/transport/byte_buffers.h"

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace conclave::transport {

grpc::ByteBuffer ToByteBuffer(Buffer frame) {
  if (frame.empty()) {
    const grpc::Slice none;
    return grpc::ByteBuffer(&none, 1);
  }
  auto* owned = new Buffer(std::move(frame));
  const grpc::Slice slice(
      owned->data(),
      owned->size(),
      [](void* p) { delete static_cast<Buffer*>(p); },
      owned);
  return grpc::ByteBuffer(&slice, 1);
}

Buffer ToBuffer(const grpc::ByteBuffer& message) {
  grpc::Slice one;
  if (message.TrySingleSlice(&one).ok()) {
    return Buffer::Copy(std::as_bytes(std::span(one.begin(), one.size())));
  }
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return Buffer();
  Buffer out(message.Length());
  size_t used = 0;
  for (const grpc::Slice& slice : slices) {
    if (slice.size() == 0) continue;
    std::memcpy(out.data() + used, slice.begin(), slice.size());
    used += slice.size();
  }
  return out;
}

FlatMessage::FlatMessage(const grpc::ByteBuffer& message) {
  if (message.TrySingleSlice(&slice_).ok() &&
      reinterpret_cast<uintptr_t>(slice_.begin()) % 8 == 0) {
    bytes_ = std::as_bytes(std::span(slice_.begin(), slice_.size()));
    return;
  }
  copy_ = ToBuffer(message);
  bytes_ = copy_.bytes();
}

}  // namespace conclave::transport
