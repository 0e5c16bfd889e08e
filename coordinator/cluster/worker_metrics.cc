// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/worker_metrics.h"

#include "coordinator/cluster/membership.h"

namespace conclave::cluster {

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
  frames_.Set(static_cast<double>(state.frames_served));
  resident_.Set(static_cast<double>(state.resident_bytes));
  memory_free_.Set(static_cast<double>(state.memory_free_bytes));
}

}  // namespace conclave::cluster
