// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/clock.h"
#include "common/thread_pool.h"
#include "conclave/v1/links.pb.h"

namespace conclave::cli {

// Loads everything but the routed experts and times decode steps whose experts
// answer zeros at once: the coordinator's part of a step, and how much of it
// lies between sending rows and waiting for sums. `sequences` ascends.
absl::StatusOr<std::vector<v1::MeasuredStep>> MeasureDenseSteps(
    const checkpoint::Checkpoint& checkpoint,
    const std::vector<int32_t>& sequences,
    ThreadPool* pool,
    Clock* clock);

}  // namespace conclave::cli
