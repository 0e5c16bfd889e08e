// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/gdn_quad.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_gdn.h"

// What the forms of Gated DeltaNet share. Two of them, for one row a sequence
// and for rows one after the other, give the same bits, so every sum here has
// one order: roundings are spelled out (__fmaf_rn, ...), sums over lanes and
// key groups are trees by the bits of their index, lowest bit first.
namespace conclave::kernels::cuda::gdn {

constexpr int kHeadDim = 128;  // of keys and of values
constexpr int kTaps = 4;       // of the convolution
// A thread holds 8 keys of 4 columns of a head's state: as many as leave
// registers for the rest. So 16 key groups make a column.
constexpr int kGroups = 16;
constexpr int kGroupKeys = 8;
constexpr float kQueryScale = 0.08838834764831845f;  // 1 / sqrt(kHeadDim)
constexpr unsigned kWholeWarp = 0xffffffffu;

struct Task {
  DeviceGdnWeights weights;
  DeviceGdnState state;
  DeviceStep step;
  const float* projected;  // [rows, Projected()]
  void* y;                 // [rows, Values()]
  bool y_bf16;
  int key_heads;
  int value_heads;
  float eps;
  // Scratch of the form for many rows. mixed: q | k | v after the convolution,
  // q and k normed; v's place takes the sums before the gated norm. gates:
  // decay, beta, k.q, slot_out (an int's bits).
  float* mixed;   // [rows, Channels()]
  float4* gates;  // [rows, value_heads]
  // Of the chunked form, gdn_chunk.cuh: T and A, lower triangles.
  float* inverse;  // [value_heads, rows, 64]
  float* scores;   // [value_heads, rows, 64]

  __host__ __device__ int Values() const { return value_heads * kHeadDim; }
  __host__ __device__ int Channels() const {
    return 2 * key_heads * kHeadDim + Values();
  }
  __host__ __device__ int Projected() const {
    return Channels() + Values() + 2 * value_heads;
  }
  __device__ int KeyHead(int head) const {
    return head / (value_heads / key_heads);
  }
  // First channel of a head.
  __device__ int QueryAt(int key_head) const { return key_head * kHeadDim; }
  __device__ int KeyAt(int key_head) const {
    return (key_heads + key_head) * kHeadDim;
  }
  __device__ int ValueAt(int head) const {
    return (2 * key_heads + head) * kHeadDim;
  }
  __device__ const float* ProjectedRow(int row) const {
    return projected + static_cast<size_t>(row) * Projected();
  }
  // The ring's row of a position, which may be negative.
  __device__ float* RingRow(int slot, int position) const {
    const size_t row =
        static_cast<size_t>(slot) * kTaps + (position & (kTaps - 1));
    return state.conv + row * Channels();
  }
  // T: as state.dtype says, float or __nv_bfloat16.
  template <typename T>
  __device__ T* StateOf(int slot, int head) const {
    return static_cast<T*>(state.recurrent) +
           (static_cast<size_t>(slot) * value_heads + head) *
               (kHeadDim * kHeadDim);
  }
};

// Key `i` of a group; two runs of four, which 16 threads read from shared
// memory without conflicts.
__device__ __forceinline__ int KeyOf(int group, int i) {
  return i / 4 * (kHeadDim / 2) + group * 4 + i % 4;
}

__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(kWholeWarp, x, mask));
  }
  return x;
}

__device__ __forceinline__ float Dot(const Quad& a, const Quad& b) {
  return __fadd_rn(
      __fadd_rn(__fmul_rn(a.x[0], b.x[0]), __fmul_rn(a.x[1], b.x[1])),
      __fadd_rn(__fmul_rn(a.x[2], b.x[2]), __fmul_rn(a.x[3], b.x[3])));
}

__device__ __forceinline__ float Silu(float x) {
  return __fdiv_rn(x, __fadd_rn(1.0f, expf(-x)));
}

// The convolution's taps of four channels, then SiLU. before[j]: the row j
// positions ago.
struct Taps {
  Quad of[4];  // [channel], oldest first

  __device__ __forceinline__ void Read(const Task& task, int channel) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      of[c] = Load(task.weights.conv + (channel + c) * kTaps);
    }
  }
  __device__ __forceinline__ Quad Apply(const Quad (&before)[kTaps]) const {
    Quad out;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        sum = __fmaf_rn(of[c].x[j], before[kTaps - 1 - j].x[c], sum);
      }
      out.x[c] = Silu(sum);
    }
    return out;
  }
};

// One head's 128 values over a warp: x / sqrt(sum(x^2) + 1e-6) * scale.
__device__ __forceinline__ void L2Norm(float scale, Quad* x) {
  const float sum = WarpSum(Dot(*x, *x));
  const float factor = __fdiv_rn(scale, __fsqrt_rn(__fadd_rn(sum, 1e-6f)));
#pragma unroll
  for (float& value : x->x) value = __fmul_rn(value, factor);
}

__device__ __forceinline__ float Decay(float a, float a_log, float dt_bias) {
  const float x = __fadd_rn(a, dt_bias);
  const float softplus = x > 20.0f ? x : log1pf(expf(x));
  return expf(-__fmul_rn(expf(a_log), softplus));
}
__device__ __forceinline__ float Sigmoid(float x) {
  return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-x)));
}

// What a column adds; its S^T q after that, from p = S^T k and o = S^T q.
__device__ __forceinline__ float Delta(float beta,
                                       float decay,
                                       float v,
                                       float p) {
  return __fmul_rn(beta, __fmaf_rn(-decay, p, v));
}
__device__ __forceinline__ float Out(float decay, float o, float kq, float d) {
  return __fmaf_rn(kq, d, __fmul_rn(decay, o));
}
__device__ __forceinline__ float Next(float s, float decay, float k, float d) {
  return __fmaf_rn(k, d, __fmul_rn(decay, s));
}

__device__ __forceinline__ float NormFactor(const Task& task, float squares) {
  return __frsqrt_rn(__fmaf_rn(squares, 1.0f / kHeadDim, task.eps));
}
__device__ __forceinline__ float Gated(float o,
                                       float factor,
                                       float weight,
                                       float z) {
  return __fmul_rn(__fmul_rn(weight, __fmul_rn(o, factor)), Silu(z));
}

// Whether half a head is work for a block: otherwise it is a quarter, so that
// few heads fill the device.
inline bool HalvesFill(const DeviceQueue& queue, const Task& task) {
  return 2 * task.step.sequences * task.value_heads >=
         queue.multiprocessors() * 3 / 4;
}

// One row a sequence, all in one kernel:
absl::Status Decode(DeviceQueue* queue, const Task& task);
// Any rows, one after the other:
absl::Status ConvolveRows(DeviceQueue* queue, const Task& task);
absl::Status RunRows(DeviceQueue* queue, const Task& task);
absl::Status NormRows(DeviceQueue* queue, const Task& task);

}  // namespace conclave::kernels::cuda::gdn
