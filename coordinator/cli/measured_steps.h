// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/clock.h"
#include "common/thread_pool.h"
#include "coordinator/cluster/link_probe.h"
#include "kernels/context.h"

namespace conclave::cli {

// A decode step of so many sequences, medians, in microseconds.
struct StepFigures {
  int32_t sequences = 1;
  double alone_us = 0;    // its experts answer zeros at once
  double between_us = 0;  // part of it between sending rows and waiting
  double probed_us = 0;   // with an exchange of probes in each layer; or 0
};

struct StepOptions {
  std::vector<int32_t> sequences;  // ascending
  ThreadPool* pool = nullptr;
  kernels::Activations activations = kernels::Activations::kF32;
  Clock* clock = nullptr;
  // For probes of the rows' size to and from each worker; may be null.
  cluster::LinkProbe* probe = nullptr;
  std::vector<WorkerId> workers;
  int32_t row_bytes = 0;
  int32_t reply_bytes = 0;
};

// Loads everything but the routed experts and times decode steps, with and
// without probes in turn. Unavailable or DeadlineExceeded: a probe failed.
absl::StatusOr<std::vector<StepFigures>> MeasureSteps(
    const checkpoint::Checkpoint& checkpoint, const StepOptions& options);

}  // namespace conclave::cli
