// SPDX-License-Identifier: Apache-2.0
#include "common/transport/memory_transport.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace conclave::transport {

void MemoryTransport::AddWorker(WorkerId id,
                                std::string name,
                                FrameHandler handler) {
  workers_[id] = Worker{std::move(name), std::move(handler)};
}

absl::Status MemoryTransport::Send(WorkerId to, Buffer frame) {
  const auto worker = workers_.find(to);
  if (worker == workers_.end()) {
    return absl::UnavailableError(
        absl::StrCat("exchange: there is no link to ", PeerName(to)));
  }
  replies_.push_back(Reply{to, worker->second.handler(frame.bytes())});
  return absl::OkStatus();
}

absl::StatusOr<Delivery> MemoryTransport::Receive(absl::Time /*deadline*/) {
  // Replies are made within Send, so waiting could bring nothing more.
  if (replies_.empty()) {
    return absl::DeadlineExceededError(
        "exchange: no frame is on its way from any worker");
  }
  Reply reply = std::move(replies_.front());
  replies_.pop_front();
  return Delivery{reply.from, std::move(reply.frame)};
}

std::string MemoryTransport::PeerName(WorkerId worker) const {
  const auto it = workers_.find(worker);
  if (it != workers_.end()) return it->second.name;
  return absl::StrCat("worker ", Index(worker));
}

}  // namespace conclave::transport
