// SPDX-License-Identifier: Apache-2.0
#include "common/transport/byte_buffers.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace conclave::transport {

namespace {

// A frame that gRPC holds. Its thread that frees it may be another one; the
// flag orders the two where a tool cannot see gRPC's own counter.
struct LentFrame {
  Buffer frame;
  std::atomic<bool> lent{false};
};

}  // namespace

grpc::ByteBuffer ToByteBuffer(Buffer frame) {
  if (frame.empty()) {
    const grpc::Slice none;
    return grpc::ByteBuffer(&none, 1);
  }
  auto* lent = new LentFrame{.frame = std::move(frame)};
  lent->lent.store(true, std::memory_order_release);
  const auto release = [](void* p) {
    auto* frame = static_cast<LentFrame*>(p);
    if (frame->lent.load(std::memory_order_acquire)) delete frame;
  };
  const grpc::Slice slice(
      lent->frame.data(), lent->frame.size(), release, lent);
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

std::string ToText(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  std::string out;
  if (!message.Dump(&slices).ok()) return out;
  out.reserve(message.Length());
  for (const grpc::Slice& slice : slices) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
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
