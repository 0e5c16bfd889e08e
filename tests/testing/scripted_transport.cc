// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/scripted_transport.h"

#include <utility>

namespace conclave::testing {

void ScriptedTransport::AddWorker(WorkerId id,
                                  std::string name,
                                  transport::FrameHandler handler) {
  workers_[id].name = std::move(name);
  workers_[id].handler = std::move(handler);
}

void ScriptedTransport::OnNextReply(WorkerId worker, Script script) {
  workers_.at(worker).scripts.push_back(std::move(script));
}

void ScriptedTransport::RefuseNextSend(WorkerId worker, absl::Status status) {
  workers_.at(worker).refusals.push_back(std::move(status));
}

void ScriptedTransport::Deliver(WorkerId from,
                                absl::StatusOr<Buffer> frame,
                                absl::Duration after) {
  queue_.push_back({clock_->Now() + after, {from, std::move(frame)}});
}

absl::Status ScriptedTransport::Send(WorkerId to, Buffer frame) {
  Worker& worker = workers_.at(to);
  if (!worker.refusals.empty()) {
    absl::Status refusal = std::move(worker.refusals.front());
    worker.refusals.pop_front();
    return refusal;
  }
  Buffer reply = worker.handler(frame.bytes());
  if (worker.scripts.empty()) {
    Deliver(to, std::move(reply));
    return absl::OkStatus();
  }
  const Script script = std::move(worker.scripts.front());
  worker.scripts.pop_front();
  script(std::move(reply));
  return absl::OkStatus();
}

absl::StatusOr<transport::Delivery> ScriptedTransport::Receive(
    absl::Time deadline) {
  auto next = queue_.end();
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    if (next == queue_.end() || it->at < next->at ||
        (newest_first_ && it->at == next->at)) {
      next = it;
    }
  }
  if (next == queue_.end() || next->at > deadline) {
    clock_->SleepUntil(deadline);
    return absl::DeadlineExceededError("nothing arrived");
  }
  clock_->SleepUntil(next->at);
  transport::Delivery delivery = std::move(next->delivery);
  queue_.erase(next);
  return delivery;
}

std::string ScriptedTransport::PeerName(WorkerId worker) const {
  return workers_.at(worker).name;
}

}  // namespace conclave::testing
