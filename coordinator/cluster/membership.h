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
#include "coordinator/delivery/supply.h"

namespace conclave::cluster {

// What a worker is up to, as seen from here.
enum class Phase {
  kConnect,   // dialled, registered
  kAssign,    // loads its slices
  kExchange,  // opens the exchange streams
  kReady,
  kSilent,  // was ready; does not answer, its link still stands
};
std::string_view Name(Phase phase);

struct WorkerState {
  std::string name;
  std::string address;
  Phase phase = Phase::kConnect;
  absl::Status error;  // the last one, kept until the worker is ready
  // The load, for a bar with rate and time left.
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
  absl::Time load_began = absl::InfinitePast();
  absl::Time load_news = absl::InfinitePast();  // of the last bytes
  // Of bytes_done, by where the worker took them from.
  uint64_t local_bytes = 0;
  uint64_t cache_bytes = 0;
  uint64_t peer_bytes = 0;
  uint64_t coordinator_bytes = 0;
  // From Register and Health.
  std::string version;
  std::string simd;
  int32_t threads = 0;
  uint64_t frames_served = 0;
  uint64_t resident_bytes = 0;
  uint64_t memory_free_bytes = 0;
};

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

 private:
  struct Impl;
  explicit Cluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::cluster
