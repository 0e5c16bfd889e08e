// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/device.h"

namespace conclave::kernels {
namespace {

using cuda::ToStatus;

constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 4;

// Every thread sums 16-byte pieces; the store never happens, but the compiler
// cannot know that.
__global__ void ReadAll(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < count;
       i += step) {
    const uint4 piece = data[i];
    sum += piece.x ^ piece.y ^ piece.z ^ piece.w;
  }
  if (sum == 0xdeadbeefu) *sink = sum;
}

struct FreeDevice {
  void operator()(void* p) const { cudaFree(p); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t e) const { cudaEventDestroy(e); }
};
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;

absl::StatusOr<Event> MakeEvent() {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaEventCreate(&event), "creating an event"));
  return Event(event);
}

}  // namespace

absl::StatusOr<double> MeasureReadBandwidth(int32_t device,
                                            uint64_t bytes,
                                            int32_t repeats) {
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "choosing the device"));
  void* raw = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaMalloc(&raw, bytes + sizeof(uint32_t)),
                           "allocating the buffer to read"));
  const std::unique_ptr<void, FreeDevice> memory(raw);
  RETURN_IF_ERROR(ToStatus(cudaMemset(raw, 1, bytes), "filling the buffer"));
  int processors = 0;
  RETURN_IF_ERROR(
      ToStatus(cudaDeviceGetAttribute(
                   &processors, cudaDevAttrMultiProcessorCount, device),
               "reading an attribute"));
  ASSIGN_OR_RETURN(const Event begin, MakeEvent());
  ASSIGN_OR_RETURN(const Event end, MakeEvent());
  auto* sink = reinterpret_cast<uint32_t*>(static_cast<char*>(raw) + bytes);
  std::vector<float> milliseconds;
  for (int32_t i = 0; i < repeats; ++i) {
    cudaEventRecord(begin.get());
    ReadAll<<<processors * kBlocksPerMultiprocessor, kThreads>>>(
        static_cast<const uint4*>(raw), bytes / sizeof(uint4), sink);
    cudaEventRecord(end.get());
    RETURN_IF_ERROR(
        ToStatus(cudaEventSynchronize(end.get()), "the read kernel"));
    milliseconds.push_back(0);
    cudaEventElapsedTime(&milliseconds.back(), begin.get(), end.get());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return static_cast<double>(bytes) /
         (milliseconds[milliseconds.size() / 2] * 1e-3);
}

}  // namespace conclave::kernels
