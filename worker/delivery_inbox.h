// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/transport/grpc_exchange_server.h"
#include "conclave/v1/delivery.pb.h"

namespace conclave::worker {

// One frame from the coordinator. The coordinator sends the next one of its
// slice when this one is answered, which bounds what lies here.
class Arrival {
 public:
  Arrival(std::string frame, transport::Responder respond);
  Arrival(Arrival&&) = default;
  Arrival& operator=(Arrival&&) = default;
  // What nobody took is answered with Aborted.
  ~Arrival();

  // InvalidArgument: no frame.
  absl::Status Parse();
  const v1::DeliverHeader& header() const { return header_; }
  std::span<const std::byte> body() const { return body_; }
  void Answer(const absl::Status& status);

 private:
  std::unique_ptr<std::string> frame_;  // body_ points into it
  transport::Responder respond_;
  v1::DeliverHeader header_;
  std::span<const std::byte> body_;
};

// Where a load waits for what it asked of the coordinator. Thread-safe.
class DeliveryInbox {
 public:
  // `stop`: set, waits end with Cancelled. Both outlive the inbox.
  DeliveryInbox(Clock* clock, const std::atomic<bool>* stop)
      : clock_(clock), stop_(stop) {}

  // From now on frames of this load alone are taken.
  void Begin(uint64_t generation, uint64_t load);
  // Waits end with Cancelled; frames are refused until the next Begin.
  void End();

  // Frames of this slice are taken from now on, and not any longer.
  void Expect(int32_t slice);
  void Forget(int32_t slice);
  // DeadlineExceeded: nothing came for so long.
  absl::StatusOr<Arrival> Take(int32_t slice, absl::Duration deadline);

  // From the poller: quick.
  void Deliver(std::string frame, transport::Responder respond);

 private:
  Clock* const clock_;
  const std::atomic<bool>* const stop_;
  std::mutex mu_;
  std::condition_variable came_;
  bool open_ = false;
  uint64_t generation_ = 0;
  uint64_t load_ = 0;
  std::map<int32_t, std::deque<Arrival>> slices_;
};

}  // namespace conclave::worker
