// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_queue.h"

namespace conclave::kernels::cuda {

// Queues *passed += 1, a word in host memory that the device sees. Launched
// after all that came before has ended.
absl::Status QueuePassed(DeviceQueue* queue, int64_t* passed);

}  // namespace conclave::kernels::cuda
