// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/slices.h"
#include "common/transport/transport.h"
#include "conclave/v1/config.pb.h"
#include "conclave/v1/control.pb.h"
#include "coordinator/cluster/worker_state.h"
#include "coordinator/delivery/supply.h"

namespace conclave::cluster {

struct ClusterParts {
  v1::ClusterConfig config;   // workers, deadlines, tls; defaults applied
  Placement placement;        // holders are indexes of config.workers
  std::string config_sha256;  // of the checkpoint, hex
  delivery::Supply* supply = nullptr;  // outlives the cluster; not null
  Clock* clock = nullptr;              // outlives the cluster
  Metrics* metrics = nullptr;          // likewise; null: none
};

// The workers of one coordinator: a thread per worker dials, registers,
// assigns, opens the exchange streams, watches, and begins again for ever when
// the worker is lost. Thread-safe.
class Cluster {
 public:
  // Does not wait for any worker. NotFound: a TLS file.
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(ClusterParts parts);
  ~Cluster();

  // For the engine's thread alone. Lives as long as the cluster.
  transport::Transport* transport();
  // Of this life of the coordinator; stands in every frame.
  uint64_t generation() const;

  // OK, or Unavailable that names every missing worker, its phase and its last
  // error. OK without workers.
  absl::Status Ready() const;

  // Waits; calls `tick` about ten times a second. Ready() at the end.
  absl::Status WaitReady(
      absl::Time deadline,
      absl::FunctionRef<void(const std::vector<WorkerState>&)> tick);

  std::vector<WorkerState> Workers() const;
  WorkerState Look(WorkerId worker) const;

  // The worker makes its end of a link; everything but the generation is set.
  // Returns when it has, at the latest after twice the deadline of joining.
  absl::Status Join(WorkerId worker, v1::JoinRequest request) const;

 private:
  struct Impl;
  explicit Cluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::cluster
