// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/device_queue.h"

namespace conclave::kernels::cuda {

// Bytes of shared memory that a block may have.
absl::StatusOr<size_t> SharedBytesMax(const DeviceQueue& queue);

}  // namespace conclave::kernels::cuda
