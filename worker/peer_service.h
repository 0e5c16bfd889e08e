// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "common/bounded_queue.h"
#include "common/transport/grpc_exchange_server.h"
#include "worker/expert_store.h"

namespace conclave::worker {

// Answers Holds and Fetch of other workers, in a thread of its own: they wait
// for the disk.
class PeerService {
 public:
  // `name` as in ControlService; the store outlives the service.
  PeerService(std::string name, const ExpertStore* store);
  ~PeerService();

  // From the poller. ResourceExhausted when too many calls wait.
  void Handle(const std::string& method,
              std::string request,
              transport::Responder respond);

 private:
  void AnswerHolds(const std::string& request,
                   const transport::Responder& respond) const;
  void AnswerFetch(const std::string& request,
                   const transport::Responder& respond) const;

  const std::string name_;
  const ExpertStore* const store_;
  BoundedQueue<std::function<void()>> calls_;
  std::thread thread_;
};

}  // namespace conclave::worker
