// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstring>

#include "common/buffer.h"
#include "common/check.h"
#include "common/transport/wire.h"

// Decoders take anything without reading outside the frame, and what a decoder
// accepts encodes to a frame that it accepts again.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave::transport;
  const auto input = std::as_bytes(std::span(data, size));
  conclave::Buffer frame = conclave::Buffer::Copy(input);
  (void)PeekKind(frame.bytes());
  // The size in the header is never guessed by mutation: help.
  if (size >= 16) {
    const uint64_t bytes = size;
    std::memcpy(frame.data() + 8, &bytes, sizeof(bytes));
  }
  const auto request = DecodeRequest(frame.bytes());
  if (request.ok()) {
    const conclave::Buffer again = EncodeRequest(*request);
    CONCLAVE_CHECK(DecodeRequest(again.bytes()).ok());
  }
  const auto reply = DecodeReply(frame.bytes());
  if (reply.ok()) {
    const conclave::Buffer again = EncodeReply(*reply);
    CONCLAVE_CHECK(DecodeReply(again.bytes()).ok());
  }
  const auto error = DecodeError(frame.bytes());
  if (error.ok()) {
    const conclave::Buffer again = EncodeError(*error);
    CONCLAVE_CHECK(DecodeError(again.bytes()).ok());
  }
  const auto probe = DecodeProbe(frame.bytes());
  if (probe.ok()) {
    const conclave::Buffer again = EncodeProbe(*probe);
    CONCLAVE_CHECK(DecodeProbe(again.bytes()).ok());
  }
  const auto step = DecodeStep(frame.bytes());
  if (step.ok()) {
    CONCLAVE_CHECK(*DecodeStep(EncodeStep(*step).bytes()) == *step);
  }
  return 0;
}
