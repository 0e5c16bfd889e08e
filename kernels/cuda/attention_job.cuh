// SPDX-License-Identifier: Apache-2.0
// What the kernels of gated attention share: the job, the layout of scratch
// and cache, and where results go.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/shared_bytes.h"
#include "kernels/device_attention.h"
#include "kernels/device_queue.h"

namespace conclave::kernels::cuda::attention {

constexpr int kHeadDim = 256;
constexpr int kBlockTokens = 64;
constexpr int kGroupHeads = 16;  // query heads of a KV head: rows of an mma
constexpr int kWarps = 8;        // of a block that attends
constexpr int kThreads = 32 * kWarps;
// Bounds the blocks (and the memory) of a step that is split over context.
constexpr int kPartialsPerMultiprocessor = 8;
constexpr int kSplitsMax = 256;  // one per thread of the kernel that combines

// Passed to kernels by value. A unit is one row of one KV head: row * kv_heads
// + kv_head.
struct AttentionJob {
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t ratio = 0;             // heads per KV head, <= kGroupHeads
  int32_t splits = 1;            // of the context
  int32_t projected_stride = 0;  // floats per row
  DeviceStep step;
  const float* projected = nullptr;
  char* cache = nullptr;
  // f32: [rows, heads, 256]. Otherwise fragments of 16 bits, for each unit
  // [16 steps of the contraction, 32 lanes, 4 registers, 2].
  void* q = nullptr;
  float* partial = nullptr;  // [units, splits, 16, 256], not yet divided
  float* stats = nullptr;    // [units, splits, 16, 2]: maximum, sum
  void* y = nullptr;
  bool y_bf16 = true;
};

// A 16-byte load holds kWide elements. Lane 4 g + t reads elements kWide * t
// of 4 * kWide ones, so that 4 lanes read 64 neighbouring bytes; the order of
// the contraction follows from that.
template <KvDType>
struct KvOf;

template <>
struct KvOf<KvDType::kF32> {
  using Element = float;
};

template <>
struct KvOf<KvDType::kBF16> {
  using Element = __nv_bfloat16;
  static constexpr int kWide = 8;
};

// Multiplied as f16, which holds every e4m3 value.
template <>
struct KvOf<KvDType::kFp8> {
  using Element = __nv_fp8_e4m3;
  static constexpr int kWide = 16;
};

template <KvDType kType>
__device__ __forceinline__ size_t HeadBytes() {
  return sizeof(typename KvOf<kType>::Element) * kBlockTokens * kHeadDim;
}

// The keys of a head in a block; its values are kv_heads * HeadBytes behind.
template <KvDType kType>
__device__ __forceinline__ char* KeysOf(const AttentionJob& job,
                                        int32_t block,
                                        int32_t kv_head) {
  return job.cache +
         HeadBytes<kType>() *
             (2 * static_cast<size_t>(block) * job.kv_heads + kv_head);
}

// Part `split` of `count` pieces.
struct Range {
  int32_t begin = 0;
  int32_t end = 0;
};
__device__ __forceinline__ Range PartOf(int32_t count,
                                        int32_t split,
                                        int32_t splits) {
  return {
      static_cast<int32_t>(static_cast<int64_t>(count) * split / splits),
      static_cast<int32_t>(static_cast<int64_t>(count) * (split + 1) / splits)};
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two operands of a product.
template <KvDType kType>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  if constexpr (kType == KvDType::kBF16) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&two);
  } else {
    const __half2 two = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
}

__device__ __forceinline__ float2 GateOf(const AttentionJob& job,
                                         int32_t row,
                                         int32_t head,
                                         int32_t dim) {
  return *reinterpret_cast<const float2*>(
      job.projected + static_cast<size_t>(row) * job.projected_stride +
      (2 * head + 1) * kHeadDim + dim);
}

// y = value * sigmoid(gate) for two neighbouring dims.
__device__ __forceinline__ void StoreGated(const AttentionJob& job,
                                           int32_t row,
                                           int32_t head,
                                           int32_t dim,
                                           float2 gate,
                                           float2 value) {
  value.x *= 1.0f / (1.0f + expf(-gate.x));
  value.y *= 1.0f / (1.0f + expf(-gate.y));
  const size_t at =
      (static_cast<size_t>(row) * job.heads + head) * kHeadDim + dim;
  if (job.y_bf16) {
    *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(job.y) +
                                       at) =
        __floats2bfloat162_rn(value.x, value.y);
  } else {
    *reinterpret_cast<float2*>(static_cast<float*>(job.y) + at) = value;
  }
}

__device__ __forceinline__ void StoreGated(const AttentionJob& job,
                                           int32_t row,
                                           int32_t head,
                                           int32_t dim,
                                           float2 value) {
  StoreGated(job, row, head, dim, GateOf(job, row, head, dim), value);
}

// Of head `head` of a group, or all heads for head 0.
__device__ __forceinline__ size_t PartialAt(const AttentionJob& job,
                                            int32_t row,
                                            int32_t kv_head,
                                            int32_t split,
                                            int32_t head) {
  const size_t unit = static_cast<size_t>(row) * job.kv_heads + kv_head;
  return (unit * job.splits + split) * kGroupHeads + head;
}

// The steps of attention, in files of their own; each queues one kernel.
struct AttentionNorms {
  const float* q = nullptr;
  const float* k = nullptr;
  float eps = 0;
  int32_t rotary_dim = 0;
  double rope_theta = 0;
};
absl::Status LaunchPrepare(DeviceQueue* queue,
                           KvDType dtype,
                           const AttentionJob& job,
                           const AttentionNorms& norms);
absl::Status LaunchAttendF32(DeviceQueue* queue, const AttentionJob& job);
// One block per unit and split; its warps share the keys.
absl::Status LaunchAttendRows(DeviceQueue* queue,
                              KvDType dtype,
                              const AttentionJob& job);
// One block per tile, KV head and split; its warps walk the keys together.
absl::Status LaunchAttendTiles(DeviceQueue* queue,
                               KvDType dtype,
                               const AttentionJob& job);
absl::Status LaunchCombine(DeviceQueue* queue, const AttentionJob& job);

// Rows of one sequence that one block takes; a bound over all sequences,
// none of which is empty.
constexpr int kTileRows = kWarps;
inline int32_t TilesMax(const DeviceStep& step) {
  return (step.rows - step.sequences) / kTileRows + step.sequences;
}

}  // namespace conclave::kernels::cuda::attention
