// SPDX-License-Identifier: Apache-2.0
#include "kernels/device.h"

namespace conclave::kernels {

namespace {

absl::Status NotBuilt() {
  return absl::UnimplementedError("this build has no CUDA (CONCLAVE_CUDA=OFF)");
}

}  // namespace

absl::StatusOr<std::vector<CudaDevice>> ListCudaDevices() { return NotBuilt(); }

absl::StatusOr<double> MeasureReadBandwidth(int32_t, uint64_t, int32_t) {
  return NotBuilt();
}

}  // namespace conclave::kernels
