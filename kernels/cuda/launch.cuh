// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/shared_bytes.h"
#include "kernels/device_queue.h"

namespace conclave::kernels::cuda {

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;  // dynamic
  unsigned cluster = 1;     // blocks of a cluster, along x
};

// Queues a kernel that may begin while the one before it still runs
// (programmatic dependent launch): every kernel launched so calls
// WaitForKernelBefore() before it touches what others write or read, and
// LetNextKernelBegin() as early as it can.
template <typename... Parameters, typename... Arguments>
absl::Status Launch(DeviceQueue* queue,
                    const char* what,
                    void (*kernel)(Parameters...),
                    const Grid& grid,
                    Arguments&&... arguments) {
  const absl::Status allowed = AllowShared(
      reinterpret_cast<const void*>(kernel), grid.shared_bytes, what);
  if (!allowed.ok()) return allowed;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {grid.cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(queue->stream());
  config.attrs = attributes;
  config.numAttrs = grid.cluster > 1 ? 2 : 1;
  return ToStatus(cudaLaunchKernelEx(
                      &config, kernel, static_cast<Parameters>(arguments)...),
                  what);
}

__device__ __forceinline__ void WaitForKernelBefore() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

__device__ __forceinline__ void LetNextKernelBegin() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace conclave::kernels::cuda
