// SPDX-License-Identifier: Apache-2.0
// The floor of every exchange between two GPUs: stores and a flag, there and
// back.
#include <algorithm>
#include <memory>

#include "common/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/device.h"
#include "kernels/device_queue.h"

namespace conclave::kernels {
namespace {

using cuda::ToStatus;

constexpr int kThreads = 512;
constexpr int64_t kDeadlineNs = 5'000'000'000;
constexpr size_t kFlagBytes = 256;

__device__ int64_t NowNs() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// A buffer begins with the flag that the other side sets.
__device__ void Send(uint4* to, const uint4* from, int64_t vectors, int round) {
  constexpr int64_t kFlagVectors = kFlagBytes / sizeof(uint4);
  for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
    to[kFlagVectors + v] = from[kFlagVectors + v];
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  __threadfence_system();
  asm volatile("st.release.sys.global.s32 [%0], %1;" ::"l"(to), "r"(round)
               : "memory");
}

__device__ bool Await(const uint4* mine, int round) {
  bool came = true;
  if (threadIdx.x == 0) {
    const int64_t begin = NowNs();
    int seen = 0;
    while (seen < round && came) {
      asm volatile("ld.acquire.sys.global.s32 %0, [%1];"
                   : "=r"(seen)
                   : "l"(mine)
                   : "memory");
      came = NowNs() - begin < kDeadlineNs;
    }
  }
  return __syncthreads_and(came) != 0;
}

__global__ void PingPong(
    uint4* mine, uint4* theirs, int64_t vectors, int rounds, bool first) {
  for (int round = 1; round <= rounds; ++round) {
    if (first) Send(theirs, mine, vectors, round);
    if (!Await(mine, round)) return;
    if (!first) Send(theirs, mine, vectors, round);
  }
}

absl::Status LetReach(int32_t from, int32_t to) {
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(from), "choosing the device"));
  const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
  if (error != cudaErrorPeerAccessAlreadyEnabled) {
    return ToStatus(error, "enabling peer access");
  }
  cudaGetLastError();  // not an error of the next call
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<double> MeasurePeerRoundTrip(int32_t first,
                                            int32_t second,
                                            uint64_t bytes,
                                            int32_t rounds) {
  const int32_t devices[2] = {first, second};
  std::unique_ptr<DeviceQueue> queues[2];
  DeviceBuffer buffers[2];
  for (int i = 0; i < 2; ++i) {
    ASSIGN_OR_RETURN(queues[i], DeviceQueue::Create(devices[i]));
    ASSIGN_OR_RETURN(
        buffers[i],
        queues[i]->Allocate(kFlagBytes + bytes, "a round trip's bytes"));
    RETURN_IF_ERROR(LetReach(devices[i], devices[1 - i]));
    RETURN_IF_ERROR(queues[i]->Fill(buffers[i], 0));
    RETURN_IF_ERROR(queues[i]->Wait());
  }
  RETURN_IF_ERROR(queues[0]->Mark(0));
  for (int i = 0; i < 2; ++i) {
    RETURN_IF_ERROR(ToStatus(cudaSetDevice(devices[i]), "choosing the device"));
    PingPong<<<1,
               kThreads,
               0,
               static_cast<cudaStream_t>(queues[i]->stream())>>>(
        buffers[i].as<uint4>(),
        buffers[1 - i].as<uint4>(),
        static_cast<int64_t>(bytes / sizeof(uint4)),
        rounds,
        i == 0);
    RETURN_IF_ERROR(ToStatus(cudaGetLastError(), "a round trip"));
    if (i == 0) RETURN_IF_ERROR(queues[0]->Mark(1));
  }
  RETURN_IF_ERROR(queues[1]->Wait());
  ASSIGN_OR_RETURN(const double seconds, queues[0]->Between());
  return seconds / rounds;
}

}  // namespace conclave::kernels
