// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "common/buffer.h"
#include "grpcpp/support/byte_buffer.h"

namespace conclave::transport {

// Hands the frame to gRPC without a copy.
grpc::ByteBuffer ToByteBuffer(Buffer frame);

// One copy, into aligned memory.
Buffer ToBuffer(const grpc::ByteBuffer& message);

// One copy; for what protobuf parses.
std::string ToText(const grpc::ByteBuffer& message);

// A received message as one aligned piece of memory: without a copy where
// gRPC holds it so.
class FlatMessage {
 public:
  explicit FlatMessage(const grpc::ByteBuffer& message);
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  grpc::Slice slice_;
  Buffer copy_;
  std::span<const std::byte> bytes_;
};

}  // namespace conclave::transport
