// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "common/metrics.h"

namespace conclave::cluster {

struct WorkerState;

// One worker's series in /metrics, labelled with its name.
class WorkerMetrics {
 public:
  WorkerMetrics(Metrics* metrics, const std::string& worker);

  void Set(const WorkerState& state);

 private:
  Gauge ready_;
  Gauge load_done_, load_total_, load_rate_, load_left_;
  Gauge from_local_, from_cache_, from_peers_, from_coordinator_;
  Gauge frames_, resident_, memory_free_;
};

}  // namespace conclave::cluster
