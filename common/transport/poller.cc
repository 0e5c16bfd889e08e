// SPDX-License-Identifier: Apache-2.0
#include "common/transport/poller.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "grpc/support/time.h"

namespace conclave::transport {

PollResult PollQueue(grpc::CompletionQueue* queue,
                     int32_t spin_us,
                     absl::Duration timeout,
                     QueueEvent* event) {
  using Queue = grpc::CompletionQueue;
  using Steady = std::chrono::steady_clock;
  const auto result = [](Queue::NextStatus status) {
    return status == Queue::GOT_EVENT  ? PollResult::kEvent
           : status == Queue::SHUTDOWN ? PollResult::kShutdown
                                       : PollResult::kTimeout;
  };
  const gpr_timespec past = gpr_time_0(GPR_CLOCK_MONOTONIC);
  const auto spin = std::min<absl::Duration>(
      timeout, absl::Microseconds(std::max(spin_us, 0)));
  const Steady::time_point spin_end =
      Steady::now() + absl::ToChronoNanoseconds(spin);
  while (true) {
    const auto status = queue->AsyncNext(&event->tag, &event->ok, past);
    if (status != Queue::TIMEOUT) return result(status);
    if (Steady::now() >= spin_end) break;
    // Where there are more spinners than cores, the peer gets the core.
    std::this_thread::yield();
  }
  if (timeout <= spin) return PollResult::kTimeout;
  gpr_timespec until = gpr_inf_future(GPR_CLOCK_MONOTONIC);
  if (timeout < absl::Hours(24)) {
    until = gpr_time_add(
        gpr_now(GPR_CLOCK_MONOTONIC),
        gpr_time_from_nanos(absl::ToInt64Nanoseconds(timeout - spin),
                            GPR_TIMESPAN));
  }
  return result(queue->AsyncNext(&event->tag, &event->ok, until));
}

}  // namespace conclave::transport
