// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "conclave/v1/control.grpc.pb.h"
#include "grpcpp/channel.h"

namespace conclave::cluster {

// The control plane's calls to one worker, each with a deadline. Blocking
// calls on purpose: threads of gRPC's own would take the exchange's events
// from the engine, which polls. Errors read "PHASE: w0 (HOST:PORT): why".
class ControlClient {
 public:
  ControlClient(std::string peer,
                const std::shared_ptr<grpc::Channel>& channel,
                Clock* clock);

  absl::StatusOr<v1::RegisterReply> Register(const v1::RegisterRequest& request,
                                             absl::Duration deadline);

  absl::StatusOr<v1::MeasureReply> Measure(const v1::MeasureRequest& request,
                                           absl::Duration deadline);

  // Returns when the worker has loaded. DeadlineExceeded: no progress for so
  // long. Cancelled: `stop` was set.
  using Progress = std::function<void(const v1::LoadProgress& progress)>;
  absl::Status Assign(const v1::AssignRequest& request,
                      absl::Duration progress_deadline,
                      const std::atomic<bool>& stop,
                      const Progress& progress);

  absl::StatusOr<v1::HealthReply> Health(uint64_t generation,
                                         absl::Duration deadline);

  absl::Status Join(const v1::JoinRequest& request, absl::Duration deadline);

  // Ends a call but Assign that runs, and later ones. From any thread.
  void Cancel();

 private:
  // The context of the blocking call that runs.
  class Call;
  std::string Label(const std::string& phase) const;

  const std::string peer_;
  Clock* const clock_;
  std::unique_ptr<v1::WorkerControl::Stub> stub_;
  std::mutex mu_;
  bool cancelled_ = false;
  grpc::ClientContext* running_ = nullptr;
};

}  // namespace conclave::cluster
