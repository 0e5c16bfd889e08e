// SPDX-License-Identifier: Apache-2.0
// Sums of pairs, where rows have different numbers of them.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_pairs.h"

namespace conclave::kernels {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// A thread takes four columns of a row.
__global__ void SumPairs(DevicePairSums sums,
                         const float4* y,
                         int32_t vectors,
                         float4* out) {
  WaitForKernelBefore();
  LetNextKernelBegin();
  const int64_t row = blockIdx.x;
  const int v = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (v >= vectors) return;
  const int end = sums.first[row + 1];
  float4 all = {0, 0, 0, 0};
  for (int i = sums.first[row]; i < end; ++i) {
    const float4 value = y[static_cast<int64_t>(sums.pair[i]) * vectors + v];
    const float weight = sums.weight[i];
    all.x = fmaf(value.x, weight, all.x);
    all.y = fmaf(value.y, weight, all.y);
    all.z = fmaf(value.z, weight, all.z);
    all.w = fmaf(value.w, weight, all.w);
  }
  out[row * vectors + v] = all;
}

}  // namespace
}  // namespace cuda

absl::Status DeviceSumPairs(DeviceQueue* queue,
                            const DevicePairSums& sums,
                            const float* y,
                            int32_t cols,
                            float* out) {
  constexpr int32_t kVector = 4;
  if (cols % kVector != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows of ", cols, " on the GPU: a multiple of 4"));
  }
  const int32_t vectors = cols / kVector;
  const int32_t blocks = (vectors + cuda::kThreads - 1) / cuda::kThreads;
  return cuda::Launch(
      queue,
      "sums of pairs",
      cuda::SumPairs,
      {.blocks = dim3(sums.rows, blocks), .threads = dim3(cuda::kThreads)},
      sums,
      reinterpret_cast<const float4*>(y),
      vectors,
      reinterpret_cast<float4*>(out));
}

}  // namespace conclave::kernels
