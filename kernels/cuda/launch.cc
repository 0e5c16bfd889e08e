// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "common/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/shared_bytes.h"

namespace conclave::kernels::cuda {
namespace {

constexpr size_t kSharedByDefault = 48 << 10;

// What each kernel may use on each device.
struct Allowed {
  std::mutex mutex;
  std::map<std::pair<const void*, int>, size_t> bytes;
};

Allowed& AllowedSoFar() {
  static auto* allowed = new Allowed;
  return *allowed;
}

}  // namespace

absl::Status AllowShared(const void* kernel, size_t bytes, const char* what) {
  if (bytes <= kSharedByDefault) return absl::OkStatus();
  int device = 0;
  RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), what));
  Allowed& allowed = AllowedSoFar();
  const std::lock_guard<std::mutex> lock(allowed.mutex);
  size_t& so_far = allowed.bytes[{kernel, device}];
  if (bytes <= so_far) return absl::OkStatus();
  RETURN_IF_ERROR(
      ToStatus(cudaFuncSetAttribute(kernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               what));
  so_far = bytes;
  return absl::OkStatus();
}

}  // namespace conclave::kernels::cuda
