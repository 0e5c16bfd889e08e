// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/transport/transport.h"
#include "tests/testing/simulated_clock.h"

namespace conclave::testing {

// A transport whose replies do what the test says, on simulated time. Without
// a script every reply arrives at once, in the order of the requests.
class ScriptedTransport final : public transport::Transport {
 public:
  explicit ScriptedTransport(SimulatedClock* clock) : clock_(clock) {}

  void AddWorker(WorkerId id,
                 std::string name,
                 transport::FrameHandler handler);

  // What becomes of the worker's next reply; used once each, first in first
  // out. It may call Deliver any number of times.
  using Script = std::function<void(Buffer reply)>;
  void OnNextReply(WorkerId worker, Script script);
  // The worker's next Send fails with this.
  void RefuseNextSend(WorkerId worker, absl::Status status);

  void Deliver(WorkerId from,
               absl::StatusOr<Buffer> frame,
               absl::Duration after = absl::ZeroDuration());
  // Of what has arrived, the last comes first.
  void set_newest_first(bool value) { newest_first_ = value; }
  size_t queued() const { return queue_.size(); }

  absl::Status Send(WorkerId to, Buffer frame) override;
  absl::StatusOr<transport::Delivery> Receive(absl::Time deadline) override;
  std::string PeerName(WorkerId worker) const override;

 private:
  struct Worker {
    std::string name;
    transport::FrameHandler handler;
    std::deque<Script> scripts;
    std::deque<absl::Status> refusals;
  };
  struct Arrival {
    absl::Time at;
    transport::Delivery delivery;
  };
  SimulatedClock* clock_;
  std::map<WorkerId, Worker> workers_;
  std::vector<Arrival> queue_;
  bool newest_first_ = false;
};

}  // namespace conclave::testing
