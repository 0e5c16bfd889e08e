// SPDX-License-Identifier: Apache-2.0
// What happens to single rows: embedding, residual sums, norms.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/device_rows.h"

namespace conclave::kernels {
namespace cuda {
namespace {

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
  __shared__ Choices choices;
  if (a.pairs != nullptr) ReadChoices(a, row, &choices);
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
      value[i] = Plus(value[i], DensePart(a, row, v, gridDim.x), 1.0f);
    }
    if (a.pairs != nullptr) {
      value[i] = Plus(value[i], PairsPart(a, choices, v), 1.0f);
    }
    if (a.dense != nullptr || a.pairs != nullptr) x[v] = value[i];
    sum += value[i].x * value[i].x + value[i].y * value[i].y +
           value[i].z * value[i].z + value[i].w * value[i].w;
  }
  StoreNormed(a, blockIdx.x, value, w, BlockSum(sum, shared));
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
  cuda::AddNormArgs args = cuda::ArgsOf(addend, cols, w, eps, x, u, low);
  args.rows_of = rows_of;
  return cuda::Launch(
      queue,
      "residual sum and norm",
      cuda::AddNorm,
      {.blocks = dim3(rows), .threads = dim3(cuda::ThreadsOf(cols))},
      args);
}

}  // namespace conclave::kernels
