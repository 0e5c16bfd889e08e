// SPDX-License-Identifier: Apache-2.0
// Adds the parts of a context: a block per row and half of a query head.
#include <math_constants.h>

#include "kernels/cuda/attention_job.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda::attention {
namespace {

constexpr int kHalves = 2;
constexpr int kQuads = kHeadDim / 4 / kHalves;  // float4 of a block
constexpr int kColumns = kThreads / kQuads;     // that share the parts
constexpr int kAhead = 8;  // parts of a thread that are on their way
static_assert(kSplitsMax <= kThreads);

__global__ void __launch_bounds__(kThreads)
    Combine(const __grid_constant__ AttentionJob job) {
  __shared__ float largest_of[kSplitsMax];
  __shared__ float sum_of[kSplitsMax];
  __shared__ float4 sums[kColumns][kQuads];
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int quad = blockIdx.y * kQuads + thread % kQuads;  // of the head
  const int column = thread / kQuads;
  const int32_t head = blockIdx.x % job.heads;
  const int32_t row = blockIdx.x / job.heads;
  const size_t part =
      PartialAt(job, row, head / job.ratio, 0, head % job.ratio);
  float2 gate[2];
  if (column == 0) {
    gate[0] = GateOf(job, row, head, 4 * quad);
    gate[1] = GateOf(job, row, head, 4 * quad + 2);
  }
  if (thread < job.splits) {
    const float2 stats = reinterpret_cast<const float2*>(
        job.stats)[part + static_cast<size_t>(thread) * kGroupHeads];
    largest_of[thread] = stats.x;
    sum_of[thread] = stats.y;
  }
  __syncthreads();
  // Every warp for itself; some part has a key, so `largest` is finite.
  float largest = -CUDART_INF_F;
  for (int s = lane; s < job.splits; s += 32) {
    largest = fmaxf(largest, largest_of[s]);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  }
  float total = 0;
  for (int s = lane; s < job.splits; s += 32) {
    total += sum_of[s] * Exp2(largest_of[s] - largest);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    total += __shfl_xor_sync(0xffffffffu, total, distance);
  }
  float4 sum = make_float4(0, 0, 0, 0);
  for (int first = column; first < job.splits; first += kColumns * kAhead) {
    float factor[kAhead];
    float4 one[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int s = first + i * kColumns;
      factor[i] = s < job.splits ? Exp2(largest_of[s] - largest) : 0.0f;
      one[i] = make_float4(0, 0, 0, 0);
      // Parts without a key were not written.
      if (factor[i] != 0) {
        one[i] = reinterpret_cast<const float4*>(
            job.partial +
            (part + static_cast<size_t>(s) * kGroupHeads) * kHeadDim)[quad];
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      sum.x += factor[i] * one[i].x;
      sum.y += factor[i] * one[i].y;
      sum.z += factor[i] * one[i].z;
      sum.w += factor[i] * one[i].w;
    }
  }
  sums[column][thread % kQuads] = sum;
  __syncthreads();
  if (column != 0) return;
#pragma unroll
  for (int c = 1; c < kColumns; ++c) {
    sum.x += sums[c][thread].x;
    sum.y += sums[c][thread].y;
    sum.z += sums[c][thread].z;
    sum.w += sums[c][thread].w;
  }
  const float whole = 1.0f / total;
  StoreGated(job,
             row,
             head,
             4 * quad,
             gate[0],
             make_float2(sum.x * whole, sum.y * whole));
  StoreGated(job,
             row,
             head,
             4 * quad + 2,
             gate[1],
             make_float2(sum.z * whole, sum.w * whole));
}

}  // namespace

absl::Status LaunchCombine(DeviceQueue* queue, const AttentionJob& job) {
  Grid grid;
  grid.blocks = dim3(job.step.rows * job.heads, kHalves);
  grid.threads = dim3(kThreads);
  return Launch(queue, "combining attention", Combine, grid, job);
}

}  // namespace conclave::kernels::cuda::attention
