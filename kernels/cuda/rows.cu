// SPDX-License-Identifier: Apache-2.0
// What happens to single rows: embedding, residual sums, norms.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_rows.h"

namespace conclave::kernels {
namespace cuda {
namespace {

constexpr int kThreadsMax = 1024;
constexpr int kColsMax = 8192;
constexpr int kVectors = kColsMax / 4 / kThreadsMax;  // of a thread

__device__ float Fp8ToFloat(uint8_t code) {
  const uint32_t pair = Fp8Pair(code, 0);
  return __uint_as_float(pair << 16) * kFp8Up;
}

__device__ float ElementOf(const WeightView& w, int64_t row, int col) {
  const auto* line = static_cast<const uint8_t*>(w.data);
  const auto half = [&](const void* from, int64_t at) {
    const uint32_t bits = static_cast<const uint16_t*>(from)[at];
    return w.scale_dtype == DType::kF16 ? F16ToFloat(bits) : Bf16ToFloat(bits);
  };
  if (w.packing == Packing::kPlain) {
    const int64_t at = row * w.row_stride + col;
    return w.dtype == DType::kF32
               ? static_cast<const float*>(w.data)[at]
               : Bf16ToFloat(static_cast<const uint16_t*>(w.data)[at]);
  }
  line += row * w.row_stride;
  if (w.packing == Packing::kFp8Block) {
    constexpr int kBlock = 128;  // columns of a scale
    const int64_t at =
        (w.first_row + row) / w.group * w.scale_stride + col / kBlock;
    return Fp8ToFloat(line[col]) * half(w.scales, at);
  }
  uint32_t code = 0;
  for (int b = 0; b < w.bits; ++b) {
    const int bit = col * w.bits + b;
    code |= static_cast<uint32_t>(line[bit / 8] >> (bit % 8) & 1) << b;
  }
  const int64_t at = row * w.scale_stride + col / w.group;
  const float scale = half(w.scales, at);
  const float bias = w.biases != nullptr
                         ? half(w.biases, at)
                         : -scale * static_cast<float>(1 << (w.bits - 1));
  return fmaf(scale, static_cast<float>(code), bias);
}

__global__ void Embed(WeightView table, const int32_t* token, float* x) {
  WaitForKernelBefore();
  LetNextKernelBegin();
  const int64_t row = token[blockIdx.x];
  const int col = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (col >= table.cols) return;
  // A token that is no token (its logits were no numbers) reads as zeros.
  x[blockIdx.x * table.cols + col] =
      row >= 0 && row < table.rows ? ElementOf(table, row, col) : 0.0f;
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

__device__ float4 Plus(float4 a, float4 b, float weight) {
  return {fmaf(b.x, weight, a.x),
          fmaf(b.y, weight, a.y),
          fmaf(b.z, weight, a.z),
          fmaf(b.w, weight, a.w)};
}

__device__ float BlockSum(float value, float* shared) {
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

__device__ void StoreRow(const AddNormArgs& a, int64_t at, float4 v) {
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

// A block takes a row; a thread four columns at a time.
__global__ void __launch_bounds__(kThreadsMax) AddNorm(AddNormArgs a) {
  __shared__ float shared[kLanes];
  LetNextKernelBegin();
  const int64_t vectors = a.cols / 4;
  float4 w[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t v = i * blockDim.x + threadIdx.x;
    if (v < vectors) w[i] = reinterpret_cast<const float4*>(a.w)[v];
  }
  WaitForKernelBefore();
  const int64_t row = a.rows_of != nullptr ? a.rows_of[blockIdx.x] : blockIdx.x;
  __shared__ int32_t place[kLanes + 1];
  __shared__ float weight[kLanes + 1];
  if (a.pairs != nullptr) {
    if (static_cast<int>(threadIdx.x) < a.per_row) {
      place[threadIdx.x] = a.place[row * a.per_row + threadIdx.x];
      weight[threadIdx.x] = a.weight[row * a.per_row + threadIdx.x];
    }
    __syncthreads();
  }
  const auto one = [](int) { return 1.0f; };
  auto* x = reinterpret_cast<float4*>(a.x) + row * vectors;
  float4 value[kVectors];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t v = i * blockDim.x + threadIdx.x;
    if (v >= vectors) continue;
    value[i] = x[v];
    // In sums of their own first, as the other backends have it.
    if (a.dense != nullptr) {
      const int64_t plane = gridDim.x * vectors;
      const auto* at =
          reinterpret_cast<const float4*>(a.dense) + row * vectors + v;
      float4 all = {0, 0, 0, 0};
      AddUp(
          a.planes, [&](int j) { return at[j * plane]; }, one, &all);
      value[i] = Plus(value[i], all, 1.0f);
    }
    if (a.pairs != nullptr) {
      const auto* at = reinterpret_cast<const float4*>(a.pairs) + v;
      float4 all = {0, 0, 0, 0};
      AddUp(
          a.per_row,
          [&](int j) { return at[place[j] * vectors]; },
          [&](int j) { return weight[j]; },
          &all);
      value[i] = Plus(value[i], all, 1.0f);
    }
    if (a.dense != nullptr || a.pairs != nullptr) x[v] = value[i];
    sum += value[i].x * value[i].x + value[i].y * value[i].y +
           value[i].z * value[i].z + value[i].w * value[i].w;
  }
  sum = BlockSum(sum, shared);
  const float factor = rsqrtf(sum / static_cast<float>(a.cols) + a.eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t v = i * blockDim.x + threadIdx.x;
    if (v >= vectors) continue;
    StoreRow(a,
             blockIdx.x * vectors + v,
             {value[i].x * factor * w[i].x,
              value[i].y * factor * w[i].y,
              value[i].z * factor * w[i].z,
              value[i].w * factor * w[i].w});
  }
}

}  // namespace
}  // namespace cuda

absl::Status DeviceEmbed(DeviceQueue* queue,
                         const WeightView& table,
                         const int32_t* token,
                         int32_t rows,
                         float* x) {
  constexpr int32_t kThreads = 256;
  const auto blocks =
      static_cast<unsigned>((table.cols + kThreads - 1) / kThreads);
  return cuda::Launch(queue,
                      "embedding",
                      cuda::Embed,
                      {.blocks = dim3(rows, blocks), .threads = dim3(kThreads)},
                      table,
                      token,
                      x);
}

absl::Status DeviceAddNorm(DeviceQueue* queue,
                           int32_t rows,
                           int32_t cols,
                           const DeviceAddend& addend,
                           const float* w,
                           float eps,
                           const int32_t* rows_of,
                           float* x,
                           const DeviceRows& u,
                           void* low) {
  if (cols % cuda::kUnitCols != 0 || cols > cuda::kColsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows of ",
                     cols,
                     " on the GPU: a multiple of 64 up to ",
                     cuda::kColsMax));
  }
  const bool pairs = addend.pairs != nullptr;
  const cuda::AddNormArgs args{
      .cols = cols,
      .per_row = pairs ? addend.entries->per_row : 0,
      .planes = addend.planes,
      .dense = addend.dense,
      .pairs = addend.pairs,
      .place = pairs ? addend.entries->place : nullptr,
      .weight = pairs ? addend.entries->weight : nullptr,
      .w = w,
      .rows_of = rows_of,
      .eps = eps,
      .x = x,
      .u = u.data,
      .low = static_cast<__nv_bfloat16*>(low),
      .bf16 = u.bf16};
  const int32_t lanes = (cols / 4 + cuda::kLanes - 1) / cuda::kLanes;
  const int32_t threads = std::min(lanes * cuda::kLanes, cuda::kThreadsMax);
  return cuda::Launch(queue,
                      "residual sum and norm",
                      cuda::AddNorm,
                      {.blocks = dim3(rows), .threads = dim3(threads)},
                      args);
}

}  // namespace conclave::kernels
