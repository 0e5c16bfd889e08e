// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_sampling.h"

namespace conclave::kernels {

namespace {

absl::Status NotBuilt() {
  return absl::UnimplementedError("this build has no CUDA (CONCLAVE_CUDA=OFF)");
}

}  // namespace

absl::Status DeviceSample(DeviceQueue*,
                          const float*,
                          int32_t,
                          int32_t,
                          int32_t,
                          const DeviceSampling*,
                          const int32_t*,
                          void*,
                          int32_t*) {
  return NotBuilt();
}

size_t SamplingScratchBytes(int32_t, int32_t) { return 0; }

absl::Status DeviceCount(DeviceQueue*,
                         const int32_t*,
                         const DeviceSampling*,
                         int32_t,
                         int32_t,
                         int32_t*) {
  return NotBuilt();
}

}  // namespace conclave::kernels
