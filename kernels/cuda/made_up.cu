// SPDX-License-Identifier: Apache-2.0
// Weights for measuring speed: the same for the same seed, about as large as a
// trained model's, so that rows stay finite and routing is spread.
#include <cmath>

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_matrix.h"

namespace conclave::kernels {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// SplitMix64 (Steele et al. 2014).
__device__ uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// bf16 numbers: uniform in [-limit, limit]; codes: random bits, without the
// NaN of FP8.
__global__ void MakeUp(
    uint64_t* out, uint64_t words, uint64_t seed, DeviceFormat f, float limit) {
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i =
           static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < words;
       i += step) {
    uint64_t bits = Mix(seed ^ i * 0xd1b54a32d192ed03);
    if (f == DeviceFormat::kBf16) {
      uint64_t made = 0;
      for (int k = 0; k < 4; ++k) {
        const auto part = static_cast<int16_t>(bits >> (16 * k));
        const float x = static_cast<float>(part) * (limit / 32768.0f);
        made |= static_cast<uint64_t>(__bfloat16_as_ushort(__float2bfloat16(x)))
                << (16 * k);
      }
      bits = made;
    } else if (f == DeviceFormat::kFp8) {
      bits &= 0xbfbfbfbfbfbfbfbf;  // exponents below 8: at most 1.9
    }
    out[i] = bits;
  }
}

__global__ void MakeUpScales(uint16_t* out,
                             uint64_t count,
                             bool biases,
                             bool f16,
                             float scale,
                             float bias) {
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i =
           static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < count;
       i += step) {
    const bool is_bias = biases && i % 2 == 1;
    const float value = is_bias ? bias : scale;
    out[i] = f16 ? __half_as_ushort(__float2half(value))
                 : __bfloat16_as_ushort(__float2bfloat16(value));
  }
}

}  // namespace
}  // namespace cuda

absl::Status FillMadeUpTable(DeviceQueue* queue,
                             uint64_t seed,
                             const WeightView& table) {
  constexpr int kBlocks = 2048;
  const auto stream = static_cast<cudaStream_t>(queue->stream());
  const bool plain = table.packing == Packing::kPlain;
  const uint64_t bytes = table.rows * table.row_stride * SizeOf(table.dtype);
  cuda::MakeUp<<<kBlocks, cuda::kThreads, 0, stream>>>(
      static_cast<uint64_t*>(const_cast<void*>(table.data)),
      bytes / sizeof(uint64_t),
      seed,
      plain                                 ? DeviceFormat::kBf16
      : table.packing == Packing::kFp8Block ? DeviceFormat::kFp8
                                            : DeviceFormat::kAffine4,
      1.0f);
  const uint64_t scales = plain ? 0 : table.rows * table.scale_stride;
  // Codes of `bits` bits then reach from about -1 to 1.
  const float scale = 2.0f / static_cast<float>((1 << table.bits) - 1);
  const auto fill = [&](const void* to, float value) {
    if (to == nullptr || scales == 0) return;
    cuda::MakeUpScales<<<kBlocks, cuda::kThreads, 0, stream>>>(
        static_cast<uint16_t*>(const_cast<void*>(to)),
        scales,
        false,
        false,
        value,
        0.0f);
  };
  fill(table.scales, scale);
  fill(table.biases, -1.0f);
  return cuda::ToStatus(cudaGetLastError(), "making a table up");
}

absl::Status FillMadeUp(DeviceQueue* queue,
                        uint64_t seed,
                        double gain,
                        DeviceMatrix* to) {
  constexpr int kBlocks = 2048;
  // Standard deviations of uniform codes, of bf16 in [-1, 1], and of the FP8
  // numbers that MakeUp leaves.
  constexpr double kOf4Bits = 4.61, kOf8Bits = 73.9, kOfUnit = 0.577,
                   kOfFp8 = 0.55;
  const double deviation = gain / std::sqrt(static_cast<double>(to->cols));
  const auto stream = static_cast<cudaStream_t>(queue->stream());
  const uint64_t words = to->data_bytes / sizeof(uint64_t);
  cuda::MakeUp<<<kBlocks, cuda::kThreads, 0, stream>>>(
      to->data.as<uint64_t>(),
      words,
      seed * 0x9e3779b97f4a7c15,
      to->format,
      static_cast<float>(deviation / kOfUnit));
  double scale = deviation / kOfFp8;
  double bias = 0;
  if (to->format == DeviceFormat::kAffine4 ||
      to->format == DeviceFormat::kGptq4) {
    scale = deviation / kOf4Bits;
    bias = -7.5 * scale;
  } else if (to->format == DeviceFormat::kAffine8) {
    scale = deviation / kOf8Bits;
    bias = -127.5 * scale;
  }
  if (to->scale_bytes > 0) {
    cuda::MakeUpScales<<<kBlocks, cuda::kThreads, 0, stream>>>(
        to->scales.as<uint16_t>(),
        to->scale_bytes / sizeof(uint16_t),
        to->format != DeviceFormat::kGptq4 && to->format != DeviceFormat::kFp8,
        to->format == DeviceFormat::kGptq4,
        static_cast<float>(scale),
        static_cast<float>(bias));
  }
  return cuda::ToStatus(cudaGetLastError(), "making weights up");
}

}  // namespace conclave::kernels
