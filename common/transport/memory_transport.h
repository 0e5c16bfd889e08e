// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <map>
#include <string>

#include "common/transport/transport.h"

namespace conclave::transport {

// A cluster in one process: carries the encoded bytes, calls the workers'
// handlers inside Send. Not thread-safe.
class MemoryTransport final : public Transport {
 public:
  void AddWorker(WorkerId id, std::string name, FrameHandler handler);

  absl::Status Send(WorkerId to, Buffer frame) override;
  absl::StatusOr<Delivery> Receive(absl::Time deadline) override;
  std::string PeerName(WorkerId worker) const override;

 private:
  struct Worker {
    std::string name;
    FrameHandler handler;
  };
  std::map<WorkerId, Worker> workers_;
  struct Reply {
    WorkerId from;
    Buffer frame;
  };
  std::deque<Reply> replies_;
};

}  // namespace conclave::transport
