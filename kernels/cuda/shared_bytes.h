// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device_queue.h"

namespace conclave::kernels::cuda {

// Bytes of shared memory that a block may have.
absl::StatusOr<size_t> SharedBytesMax(const DeviceQueue& queue);

// Lets `kernel` use `bytes` of dynamic shared memory on the calling thread's
// device. What it may use only grows, so any thread may launch it with any
// size it asked for. `what` names the launch in errors.
absl::Status AllowShared(const void* kernel, size_t bytes, const char* what);

}  // namespace conclave::kernels::cuda
