// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "conclave/v1/control.pb.h"
#include "worker/expert_device.h"

namespace conclave::worker {

// What is measured.
struct MeasureOn {
  // On the CPU: so many threads of its own, that spin as the worker's do.
  int32_t threads = 1;
  int32_t spin_us = 0;
  // Not null: its GPU instead, with a queue of its own.
  const ExpertDevice* device = nullptr;
  Clock* clock = nullptr;
};

// Reads memory and computes expert products on made-up weights; a second or
// two, at most a quarter of the free memory. InvalidArgument: sizes that no
// model has. ResourceExhausted: too little memory for two sets of experts.
absl::StatusOr<v1::MeasureReply> Measure(const v1::MeasureRequest& request,
                                         const MeasureOn& on);

}  // namespace conclave::worker
