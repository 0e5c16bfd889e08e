// SPDX-License-Identifier: Apache-2.0
#include "kernels/device.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/process.h"

namespace conclave::kernels {
using cuda::ToStatus;

absl::StatusOr<std::vector<CudaDevice>> ListCudaDevices(
    std::optional<int32_t> free_of) {
  cuda::PrepareProcess();
  int count = 0;
  absl::Status status = ToStatus(cudaGetDeviceCount(&count), "listing devices");
  if (!status.ok()) return status;
  std::vector<CudaDevice> out;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    status = ToStatus(cudaGetDeviceProperties(&properties, i), "properties");
    if (!status.ok()) return status;
    size_t free_bytes = 0;
    size_t total_bytes = properties.totalGlobalMem;
    if (free_of == i) {
      status = ToStatus(cudaSetDevice(i), "choosing a device");
      if (!status.ok()) return status;
      status = ToStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "memory");
      if (!status.ok()) return status;
    }
    out.push_back({.name = properties.name,
                   .compute_major = properties.major,
                   .compute_minor = properties.minor,
                   .memory_total_bytes = total_bytes,
                   .memory_free_bytes = free_bytes});
  }
  if (out.empty()) return absl::UnavailableError("CUDA: no device");
  return out;
}

}  // namespace conclave::kernels
