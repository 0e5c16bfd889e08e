// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/memory.h"
#include "common/transport/grpc_exchange_server.h"
#include "conclave/v1/control.pb.h"
#include "worker/expert_device.h"
#include "worker/expert_runner.h"
#include "worker/expert_store.h"
#include "worker/link_service.h"
#include "worker/peer_service.h"

namespace conclave::worker {

// The control plane of one worker (proto/conclave/v1/control.proto). Loads and
// measurements run in threads of their own; everything else answers at once.
class ControlService {
 public:
  struct Options {
    std::string name;  // empty: whatever the coordinator calls it
    int32_t threads = 1;
    int32_t spin_us = 0;
    ExpertStore* store = nullptr;
    const ExpertRunner* runner = nullptr;
    ExpertDevice* device = nullptr;  // what computes; null: the CPU
    PeerService* peers = nullptr;
    LinkService* link = nullptr;
    Clock* clock = nullptr;
    checkpoint::LoadProgressFn progress;  // for the operator; may be null
  };
  explicit ControlService(Options options);
  // Waits for a measurement that runs; ends loads.
  ~ControlService();

  // A transport::CallHandler.
  void Handle(const std::string& method,
              std::string request,
              transport::Responder respond);

 private:
  bool loading() const;
  absl::Status Greet(const v1::RegisterRequest& request,
                     v1::RegisterReply* reply) const;
  v1::HealthReply Health(const v1::HealthRequest& request) const;
  MemoryState Memory() const;  // that experts take
  void StartMeasure(v1::MeasureRequest request, transport::Responder respond);
  void Load(const v1::AssignRequest& request,
            const transport::Responder& respond);

  const Options options_;
  std::atomic<int> loads_{0};
  std::list<std::thread> loaders_;
  std::atomic<bool> measuring_{false};
  std::thread measurer_;
};

}  // namespace conclave::worker
