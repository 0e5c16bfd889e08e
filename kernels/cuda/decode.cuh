// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/fragments.cuh"

// Weights as bf16 numbers, rounded once: for products of many rows.
namespace conclave::kernels::cuda {

// Codes as bf16 numbers: 128 off, exact, then times scale plus bias, rounded
// once.
__device__ __forceinline__ uint32_t Affine(uint32_t code,
                                           __nv_bfloat162 scale,
                                           __nv_bfloat162 bias) {
  const __nv_bfloat162 offset = __float2bfloat162_rn(128.0f);
  const auto q = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&code), offset);
  const __nv_bfloat162 w = __hfma2(q, scale, bias);
  return *reinterpret_cast<const uint32_t*>(&w);
}

// The same from two planes of nibbles, and FP8, through float32.
__device__ __forceinline__ uint32_t Affine8(uint32_t low,
                                            uint32_t high,
                                            float scale,
                                            float bias) {
  const auto value = [&](int half) {
    const float l = __uint_as_float((low >> (16 * half)) << 16) - 128.0f;
    const float h = __uint_as_float((high >> (16 * half)) << 16) - 128.0f;
    return fmaf(scale, fmaf(16.0f, h, l), bias);
  };
  const __nv_bfloat162 w = __floats2bfloat162_rn(value(0), value(1));
  return *reinterpret_cast<const uint32_t*>(&w);
}

__device__ __forceinline__ uint32_t Fp8Scaled(uint32_t pair, float scale) {
  const float a = __uint_as_float(pair << 16) * kFp8Up * scale;
  const float b = __uint_as_float(pair & 0xffff0000u) * kFp8Up * scale;
  const __nv_bfloat162 w = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&w);
}

template <DeviceFormat F>
__device__ __forceinline__ void Decode(const uint4 (&raw)[kPieces<F>],
                                       int step,
                                       const RowScales& s,
                                       uint32_t (&a)[4]) {
  Fragments<F>(raw, step, 0, a);
  if constexpr (F == DeviceFormat::kAffine8) {
    uint32_t high[4];
    Fragments<F>(raw, step, 1, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = Affine8(a[i], high[i], s.scale[i % 2], s.bias[i % 2]);
    }
  } else if constexpr (F == DeviceFormat::kGptq4) {
    constexpr uint32_t kNoHigh = 0x43004300;  // nibbles of zero
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = Affine8(a[i], kNoHigh, s.scale[i % 2], s.bias[i % 2]);
    }
  } else if constexpr (F == DeviceFormat::kAffine4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = Affine(a[i],
                    __float2bfloat162_rn(s.scale[i % 2]),
                    __float2bfloat162_rn(s.bias[i % 2]));
    }
  } else if constexpr (F == DeviceFormat::kFp8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = Fp8Scaled(a[i], s.scale[0]);
  }
}

}  // namespace conclave::kernels::cuda
