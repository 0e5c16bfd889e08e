// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "worker/expert_runner.h"
#include "worker/expert_store.h"

namespace grpc {
class ServerBuilder;
}

namespace conclave::worker {

// The control plane of one worker (proto/conclave/v1/control.proto), on gRPC's
// callback API. Loads run in threads of their own.
class ControlService {
 public:
  struct Options {
    std::string name;  // empty: whatever the coordinator calls it
    int32_t threads = 1;
    ExpertStore* store = nullptr;
    const ExpertRunner* runner = nullptr;
    checkpoint::LoadProgressFn progress;  // for the operator; may be null
  };
  explicit ControlService(Options options);
  // After the grpc::Server was shut down.
  ~ControlService();

  // Before the server is built.
  void Register(grpc::ServerBuilder* builder);

  // A load cannot be interrupted.
  bool loading() const;

 private:
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace conclave::worker
