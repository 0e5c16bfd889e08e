// SPDX-License-Identifier: Apache-2.0
// Attention in float32 throughout: a block per row and query head, a thread
// per dim. For parity, not for speed.
#include <math_constants.h>

#include "kernels/cuda/attention_job.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda::attention {
namespace {

// Products of the query with the keys of one block, one key a warp at a time.
// Keys from `valid` on score -inf.
__device__ __forceinline__ void Score(const float4 (&q)[2],
                                      const float* keys,
                                      int32_t valid,
                                      float* scores) {
  const int lane = threadIdx.x % 32;
  for (int key = threadIdx.x / 32; key < kBlockTokens; key += kWarps) {
    float sum = 0;
    if (key < valid) {
      const auto* k = reinterpret_cast<const float4*>(keys + key * kHeadDim);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 a = q[i];
        const float4 b = k[32 * i + lane];
        sum += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      }
    }
    if (lane == 0) scores[key] = key < valid ? sum : -CUDART_INF_F;
  }
}

__global__ void __launch_bounds__(kThreads)
    AttendF32(const __grid_constant__ AttentionJob job) {
  __shared__ float scores[kBlockTokens];
  __shared__ float probabilities[kBlockTokens];
  __shared__ float y[kHeadDim];
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int thread = threadIdx.x;
  const int32_t head = blockIdx.x % job.heads;
  const int32_t row = blockIdx.x / job.heads;
  const int32_t keys = job.step.position[row] + 1;
  const int32_t* blocks =
      job.step.kv_blocks +
      static_cast<size_t>(job.step.sequence_of[row]) * job.step.kv_stride;
  const auto* query = reinterpret_cast<const float4*>(
      static_cast<const float*>(job.q) +
      static_cast<size_t>(blockIdx.x) * kHeadDim);
  const float4 q[2] = {query[thread % 32], query[32 + thread % 32]};
  float largest = -CUDART_INF_F;
  float total = 0;
  float sum = 0;
  for (int32_t first = 0; first < keys; first += kBlockTokens) {
    const int32_t valid = min(kBlockTokens, keys - first);
    const auto* block = reinterpret_cast<const float*>(KeysOf<KvDType::kF32>(
        job, blocks[first / kBlockTokens], head / job.ratio));
    Score(q, block, valid, scores);
    __syncthreads();
    const float before = largest;
    for (const float score : scores) largest = fmaxf(largest, score);
    if (thread < kBlockTokens) {
      probabilities[thread] = expf(scores[thread] - largest);
    }
    __syncthreads();
    const float factor = expf(before - largest);
    total *= factor;
    sum *= factor;
    const float* values =
        block +
        (static_cast<size_t>(job.kv_heads) * kHeadDim + thread) * kBlockTokens;
    for (int key = 0; key < valid; key += 4) {
      const float4 four = *reinterpret_cast<const float4*>(values + key);
      const float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // What was never written may be no number.
        if (key + i >= valid) break;
        total += probabilities[key + i];
        sum += probabilities[key + i] * v[i];
      }
    }
    // The next scores come after everybody's largest, the next probabilities
    // after everybody's scores.
  }
  y[thread] = sum / total;
  __syncthreads();
  if (thread < kHeadDim / 2) {
    StoreGated(job,
               row,
               head,
               2 * thread,
               make_float2(y[2 * thread], y[2 * thread + 1]));
  }
}

}  // namespace

absl::Status LaunchAttendF32(DeviceQueue* queue, const AttentionJob& job) {
  Grid grid;
  grid.blocks = dim3(job.step.rows * job.heads);
  grid.threads = dim3(kThreads);
  return Launch(queue, "attention in float32", AttendF32, grid, job);
}

}  // namespace conclave::kernels::cuda::attention
