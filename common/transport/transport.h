// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/buffer.h"
#include "common/ids.h"

namespace conclave::transport {

// What came from a peer: a frame, or the news that its link broke (then
// `frame` holds Unavailable with the peer's name and the phase).
struct Delivery {
  WorkerId from{};
  absl::StatusOr<Buffer> frame;
};

// Bytes to and from the workers; knows nothing of what they mean. Used by one
// thread (the engine's). Implementations: GrpcTransport, MemoryTransport, and
// the faulty one of the tests.
class Transport {
 public:
  virtual ~Transport() = default;

  // Hands a frame over; returns before it is on the wire. Unavailable (with
  // the peer's name and the last error) when there is no link.
  virtual absl::Status Send(WorkerId to, Buffer frame) = 0;

  // The next delivery from any peer. DeadlineExceeded when none came in time.
  virtual absl::StatusOr<Delivery> Receive(absl::Time deadline) = 0;

  // Name of a peer for messages: "w0 (127.0.0.1:7001)".
  virtual std::string PeerName(WorkerId worker) const = 0;
};

// The worker's side: one request frame in, one reply frame out. Called by one
// thread. Never fails: what is wrong with a request is told in the reply.
using FrameHandler = std::function<Buffer(std::span<const std::byte> frame)>;

}  // namespace conclave::transport
