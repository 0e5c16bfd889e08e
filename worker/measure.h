// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "conclave/v1/control.pb.h"

namespace conclave::worker {

// Reads memory and computes expert products on made-up weights, on so many
// threads of its own, that spin as the worker's do; a second or two, at most a
// quarter of the free memory. InvalidArgument: sizes that no model has.
// ResourceExhausted: too little memory for two sets of experts.
absl::StatusOr<v1::MeasureReply> Measure(const v1::MeasureRequest& request,
                                         int32_t threads,
                                         int32_t spin_us,
                                         Clock* clock);

}  // namespace conclave::worker
