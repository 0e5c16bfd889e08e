// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "common/bounded_queue.h"
#include "common/buffer.h"
#include "common/clock.h"
#include "common/transport/grpc_exchange_server.h"
#include "common/transport/wire.h"
#include "conclave/v1/control.pb.h"
#include "worker/expert_device.h"
#include "worker/expert_store.h"
#include "worker/linked_steps.h"

namespace conclave::worker {

// This worker's end of a link: joins it and runs its steps in a thread of its
// own. A link that broke is dropped; the coordinator joins another one.
// Thread-safe.
class LinkService {
 public:
  struct Options {
    std::string name;  // of the worker, in every error
    const ExpertStore* store = nullptr;
    ExpertDevice* device = nullptr;  // null: the CPU, which joins nothing
    Clock* clock = nullptr;
  };
  // What is pointed to outlives the service.
  explicit LinkService(Options options);
  // Ends the link.
  ~LinkService();

  // Answers when all ranks came, or with what kept them. Ends the link that
  // was there at once.
  void Join(v1::JoinRequest request, transport::Responder respond);

  // Takes a step frame, which is answered before the step ends: by itself, or
  // by an error frame: another link or generation, or the step before still
  // waits to begin.
  Buffer Begin(std::span<const std::byte> frame);

  // Ends the link and waits until nothing of it is left.
  void Leave();

  // Fills the fields of a link.
  void Describe(v1::HealthReply* reply) const;

 private:
  void Run();
  // In the service's thread.
  absl::Status JoinNow(const v1::JoinRequest& request, uint64_t turn);
  void StepNow(const transport::StepFrame& step);
  void Drop();
  absl::Status CheckJoin(const v1::JoinRequest& request,
                         const Assignment* assignment) const;
  absl::Status CheckRoom(const Assignment& assignment,
                         const LinkedSteps::Shape& shape) const;
  absl::Status CheckStep(const transport::StepFrame& step) const;

  const Options options_;
  BoundedQueue<std::function<void()>> calls_;
  std::atomic<uint64_t> turn_{0};  // a link of an older one ends
  std::atomic<int> waiting_{0};    // steps in calls_
  mutable std::mutex mu_;          // guards what follows
  std::shared_ptr<LinkedSteps> steps_;
  uint64_t generation_ = 0;
  uint64_t link_ = 0;
  uint64_t step_ = 0;
  int32_t rows_max_ = 0;
  int32_t layers_ = 0;  // of the step, when it failed
  std::string error_;
  std::thread thread_;
};

}  // namespace conclave::worker
