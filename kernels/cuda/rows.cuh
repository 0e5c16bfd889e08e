// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/fragments.cuh"
#include "kernels/device_rows.h"

// What a row adds to the residual stream, and its norm: one block takes a row,
// a thread four columns at a time.
namespace conclave::kernels::cuda {

constexpr int kThreadsMax = 1024;
constexpr int kColsMax = 8192;
constexpr int kVectors = kColsMax / 4 / kThreadsMax;  // of a thread

inline int32_t ThreadsOf(int32_t cols) {
  const int32_t lanes = (cols / 4 + kLanes - 1) / kLanes;
  return std::min(lanes * kLanes, kThreadsMax);
}

struct AddNormArgs {
  int32_t cols;
  int32_t per_row;
  int32_t planes;
  const float* dense;
  const float* pairs;
  const int32_t* place;
  const float* weight;
  const float* w;
  const int32_t* rows_of;
  float eps;
  float* x;
  void* u;
  __nv_bfloat16* low;
  bool bf16;
};

__device__ __forceinline__ float4 Plus(float4 a, float4 b, float weight) {
  return {fmaf(b.x, weight, a.x),
          fmaf(b.y, weight, a.y),
          fmaf(b.z, weight, a.z),
          fmaf(b.w, weight, a.w)};
}

__device__ __forceinline__ float BlockSum(float value, float* shared) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, i);
  }
  if (threadIdx.x % kLanes == 0) shared[threadIdx.x / kLanes] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x / kLanes; ++i) sum += shared[i];
  return sum;
}

__device__ __forceinline__ void StoreRow(const AddNormArgs& a,
                                         int64_t at,
                                         float4 v) {
  if (!a.bf16) {
    reinterpret_cast<float4*>(a.u)[at] = v;
    return;
  }
  const auto store = [at](void* to, float4 from) {
    const __nv_bfloat162 first = __floats2bfloat162_rn(from.x, from.y);
    const __nv_bfloat162 second = __floats2bfloat162_rn(from.z, from.w);
    reinterpret_cast<uint2*>(to)[at] = {
        *reinterpret_cast<const uint32_t*>(&first),
        *reinterpret_cast<const uint32_t*>(&second)};
  };
  store(a.u, v);
  if (a.low == nullptr) return;
  const auto lost = [](float x) {
    return x - __bfloat162float(__float2bfloat16(x));
  };
  store(a.low, {lost(v.x), lost(v.y), lost(v.z), lost(v.w)});
}

// sum += weight(j) * at(j) for j in [0, count), some on their way at once.
template <typename At, typename Weight>
__device__ __forceinline__ void AddUp(int count,
                                      const At& at,
                                      const Weight& weight,
                                      float4* sum) {
  constexpr int kAhead = 6;
  for (int first = 0; first < count; first += kAhead) {
    float4 value[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j < count) value[j] = at(first + j);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j < count) *sum = Plus(*sum, value[j], weight(first + j));
    }
  }
}

// A row's pairs, in shared memory.
struct Choices {
  int32_t place[kLanes + 1];
  float weight[kLanes + 1];
};

// By all threads of the block.
__device__ __forceinline__ void ReadChoices(const AddNormArgs& a,
                                            int64_t row,
                                            Choices* to) {
  if (static_cast<int>(threadIdx.x) < a.per_row) {
    to->place[threadIdx.x] = a.place[row * a.per_row + threadIdx.x];
    to->weight[threadIdx.x] = a.weight[row * a.per_row + threadIdx.x];
  }
  __syncthreads();
}

// Vector v of the sum over planes; `rows` of a plane.
__device__ __forceinline__ float4 DensePart(const AddNormArgs& a,
                                            int64_t row,
                                            int64_t v,
                                            int64_t rows) {
  const int64_t vectors = a.cols / 4;
  const int64_t plane = rows * vectors;
  const auto* at = reinterpret_cast<const float4*>(a.dense) + row * vectors + v;
  float4 all = {0, 0, 0, 0};
  AddUp(
      a.planes,
      [&](int j) { return at[j * plane]; },
      [](int) { return 1.0f; },
      &all);
  return all;
}

// Of the sum over pairs.
__device__ __forceinline__ float4 PairsPart(const AddNormArgs& a,
                                            const Choices& choices,
                                            int64_t v) {
  const int64_t vectors = a.cols / 4;
  const auto* at = reinterpret_cast<const float4*>(a.pairs) + v;
  float4 all = {0, 0, 0, 0};
  AddUp(
      a.per_row,
      [&](int j) { return at[choices.place[j] * vectors]; },
      [&](int j) { return choices.weight[j]; },
      &all);
  return all;
}

// value: this thread's vectors of the row; squares: the sum over all of them.
__device__ __forceinline__ void StoreNormed(const AddNormArgs& a,
                                            int64_t row,
                                            const float4* value,
                                            const float4* w,
                                            float squares) {
  const int64_t vectors = a.cols / 4;
  const float factor = rsqrtf(squares / static_cast<float>(a.cols) + a.eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t v = i * blockDim.x + threadIdx.x;
    if (v >= vectors) continue;
    StoreRow(a,
             row * vectors + v,
             {value[i].x * factor * w[i].x,
              value[i].y * factor * w[i].y,
              value[i].z * factor * w[i].z,
              value[i].w * factor * w[i].w});
  }
}

// Of all but rows_of.
inline AddNormArgs ArgsOf(const DeviceAddend& addend,
                          int32_t cols,
                          const float* w,
                          float eps,
                          float* x,
                          const DeviceRows& u,
                          void* low) {
  const bool pairs = addend.pairs != nullptr;
  return {.cols = cols,
          .per_row = pairs ? addend.entries->per_row : 0,
          .planes = addend.planes,
          .dense = addend.dense,
          .pairs = addend.pairs,
          .place = pairs ? addend.entries->place : nullptr,
          .weight = pairs ? addend.entries->weight : nullptr,
          .w = w,
          .rows_of = nullptr,
          .eps = eps,
          .x = x,
          .u = u.data,
          .low = static_cast<__nv_bfloat16*>(low),
          .bf16 = u.bf16};
}

}  // namespace conclave::kernels::cuda
