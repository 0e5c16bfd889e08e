// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/worker_metrics.h"

#include <string>

#include "coordinator/cluster/worker_state.h"

namespace conclave::cluster {
namespace {

Gauge LoadedFrom(Metrics* m,
                 const std::string& worker,
                 const std::string& source) {
  return m->AddGauge("conclave_worker_load_source_bytes",
                     "Bytes of the last load by where the worker took them",
                     {{"worker", worker}, {"source", source}});
}

}  // namespace

WorkerMetrics::WorkerMetrics(Metrics* m, const std::string& worker)
    : ready_(m->AddGauge("conclave_worker_ready",
                         "1: the worker answers and holds its experts",
                         {{"worker", worker}})),
      load_done_(m->AddGauge("conclave_worker_load_done_bytes",
                             "Bytes of its experts that a worker has loaded",
                             {{"worker", worker}})),
      load_total_(m->AddGauge("conclave_worker_load_total_bytes",
                              "Bytes of the experts that a worker is to hold",
                              {{"worker", worker}})),
      load_rate_(m->AddGauge("conclave_worker_load_bytes_per_second",
                             "Mean rate of the load since it began",
                             {{"worker", worker}})),
      load_left_(m->AddGauge("conclave_worker_load_eta_seconds",
                             "Time until the load ends at its mean rate",
                             {{"worker", worker}})),
      from_local_(LoadedFrom(m, worker, "local")),
      from_cache_(LoadedFrom(m, worker, "cache")),
      from_peers_(LoadedFrom(m, worker, "peer")),
      from_coordinator_(LoadedFrom(m, worker, "coordinator")),
      frames_(m->AddGauge("conclave_worker_frames_served",
                          "Frames that a worker has answered, as it says",
                          {{"worker", worker}})),
      resident_(m->AddGauge("conclave_worker_resident_bytes",
                            "Bytes of the experts that a worker holds",
                            {{"worker", worker}})),
      memory_free_(m->AddGauge("conclave_worker_memory_free_bytes",
                               "Memory that is free on a worker's machine",
                               {{"worker", worker}})) {}

void WorkerMetrics::Set(const WorkerState& state) {
  ready_.Set(state.phase == Phase::kReady ? 1 : 0);
  load_done_.Set(static_cast<double>(state.bytes_done));
  load_total_.Set(static_cast<double>(state.bytes_total));
  const double seconds =
      absl::ToDoubleSeconds(state.load_news - state.load_began);
  // Bytes that it held already cost no time.
  const uint64_t moved = state.local_bytes + state.cache_bytes +
                         state.peer_bytes + state.coordinator_bytes;
  const double rate = seconds > 0 ? static_cast<double>(moved) / seconds : 0;
  load_rate_.Set(rate);
  const auto left = static_cast<double>(state.bytes_total - state.bytes_done);
  load_left_.Set(rate > 0 ? left / rate : 0);
  from_local_.Set(static_cast<double>(state.local_bytes));
  from_cache_.Set(static_cast<double>(state.cache_bytes));
  from_peers_.Set(static_cast<double>(state.peer_bytes));
  from_coordinator_.Set(static_cast<double>(state.coordinator_bytes));
  frames_.Set(static_cast<double>(state.frames_served));
  resident_.Set(static_cast<double>(state.resident_bytes));
  memory_free_.Set(static_cast<double>(state.memory_free_bytes));
}

}  // namespace conclave::cluster
