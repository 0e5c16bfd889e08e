// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/device_matrix.h"

// From tiles of a DeviceMatrix to fragments of mma.m16n8k16, in registers.
namespace conclave::kernels::cuda {

inline constexpr int kLanes = 32;
inline constexpr int kTileRows = 16;
inline constexpr int kUnitCols = 64;
inline constexpr int kSteps = 4;  // products of 16 columns in a unit
// What an FP8 code is short of when its bits are moved into a bf16 number.
inline constexpr float kFp8Up = 1.329227995784916e36f;  // 2^120

// 16-byte pieces that a lane reads of one unit of one tile.
template <DeviceFormat F>
inline constexpr int kPieces = F == DeviceFormat::kBf16      ? 4
                               : F == DeviceFormat::kAffine4 ? 1
                               : F == DeviceFormat::kGptq4   ? 1
                                                             : 2;
template <DeviceFormat F>
inline constexpr int kUnitBytes = kPieces<F>* kLanes * 16;
// Products per step: codes of 8 bits are two codes of 4.
template <DeviceFormat F>
inline constexpr int kPlanes = F == DeviceFormat::kAffine8 ? 2 : 1;
template <DeviceFormat F>
inline constexpr bool kIsAffine =
    F != DeviceFormat::kBf16&& F != DeviceFormat::kFp8;

// d += a b, a [16, 16] row-major, b [16, 8], bf16 with float32 sums.
__device__ __forceinline__ void MultiplyAdd(float (&d)[4],
                                            const uint32_t (&a)[4],
                                            uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = a b
__device__ __forceinline__ void Multiply(float (&d)[4],
                                         const uint32_t (&a)[4],
                                         uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]),
        "r"(a[1]),
        "r"(a[2]),
        "r"(a[3]),
        "r"(b0),
        "r"(b1),
        "f"(0.0f));
}

// Codes q of 4 bits as bf16 numbers 128 + q, exact: (word & mask) | offset in
// one instruction, which the compiler makes two of when both are constants.
__device__ __forceinline__ uint32_t NibblePair(uint32_t word) {
  uint32_t out;
  asm("{\n"
      ".reg .b32 offset;\n"
      "mov.b32 offset, 0x43004300;\n"
      "lop3.b32 %0, %1, 0x000f000f, offset, 0xea;\n"
      "}"
      : "=r"(out)
      : "r"(word));
  return out;
}

__device__ __forceinline__ void NibbleFragments(uint32_t word,
                                                uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = NibblePair(word >> (4 * i));
}

// Two e4m3 numbers in bytes `first` and `first + 1` of a word as bf16 numbers
// times 2^-120: the exponent moves from four bits into eight.
__device__ __forceinline__ uint32_t Fp8Pair(uint32_t word, int first) {
  const uint32_t wide = __byte_perm(word, 0, first == 0 ? 0x1404 : 0x3424);
  return (wide & 0x80008000u) | ((wide & 0x7f007f00u) >> 4);
}

template <DeviceFormat F>
__device__ __forceinline__ void Fragments(const uint4 (&raw)[kPieces<F>],
                                          int step,
                                          int plane,
                                          uint32_t (&a)[4]) {
  const auto word = [](const uint4& piece, int i) {
    return i == 0 ? piece.x : i == 1 ? piece.y : i == 2 ? piece.z : piece.w;
  };
  if constexpr (F == DeviceFormat::kBf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = word(raw[step], i);
  } else if constexpr (F == DeviceFormat::kFp8) {
    const uint32_t low = word(raw[step / 2], step % 2 * 2);
    const uint32_t high = word(raw[step / 2], step % 2 * 2 + 1);
    a[0] = Fp8Pair(low, 0);
    a[1] = Fp8Pair(low, 2);
    a[2] = Fp8Pair(high, 0);
    a[3] = Fp8Pair(high, 2);
  } else {
    NibbleFragments(word(raw[plane], step), a);
  }
}

__device__ __forceinline__ float Bf16ToFloat(uint32_t bits) {
  return __uint_as_float(bits << 16);
}
__device__ __forceinline__ float F16ToFloat(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
}

// Scale and bias of rows g and g + 8 of a tile, for one group of columns.
struct RowScales {
  float scale[2];
  float bias[2];
};

// What a kernel knows of a matrix.
struct MatrixArgs {
  const uint8_t* data;
  const uint8_t* scales;
  const int2* places;
  int32_t tiles;
  int32_t units;
  int32_t out_cols;
  // Half a unit is 32 columns: half i has the scales i >> group_shift of the
  // scale_groups that a tile has.
  int32_t group_shift;
  int32_t scale_groups;
  // Bytes from one matrix of the stack to the next.
  uint64_t data_stride;
  uint64_t scale_stride;
};

MatrixArgs ArgsOf(const DeviceMatrix& matrix);

// Raw scales of a lane for half a unit: {scale, bias} of rows g and g + 8.
template <DeviceFormat F>
__device__ __forceinline__ uint2 LoadScales(
    const MatrixArgs& m, const uint8_t* scales, int tile, int half, int g) {
  const int64_t group =
      static_cast<int64_t>(tile) * m.scale_groups + (half >> m.group_shift);
  if constexpr (F == DeviceFormat::kBf16) {
    return {0, 0};
  } else if constexpr (F == DeviceFormat::kFp8) {
    return {__ldg(reinterpret_cast<const uint16_t*>(scales) + group), 0};
  } else {
    const int64_t at = group * 8 + g;
    if constexpr (F == DeviceFormat::kGptq4) {
      return {__ldg(reinterpret_cast<const uint32_t*>(scales) + at), 0};
    } else {
      return __ldg(reinterpret_cast<const uint2*>(scales) + at);
    }
  }
}

template <DeviceFormat F>
__device__ __forceinline__ RowScales Scales(uint2 raw) {
  RowScales out = {};
  if constexpr (F == DeviceFormat::kFp8) {
    out.scale[0] = out.scale[1] = Bf16ToFloat(raw.x);
  } else if constexpr (F == DeviceFormat::kGptq4) {
    constexpr float kMiddle = 8.0f;  // of the codes: zero
    out.scale[0] = F16ToFloat(raw.x & 0xffff);
    out.scale[1] = F16ToFloat(raw.x >> 16);
    out.bias[0] = -kMiddle * out.scale[0];
    out.bias[1] = -kMiddle * out.scale[1];
  } else if constexpr (kIsAffine<F>) {
    out.scale[0] = Bf16ToFloat(raw.x);
    out.scale[1] = Bf16ToFloat(raw.y);
    out.bias[0] = __uint_as_float(raw.x & 0xffff0000u);
    out.bias[1] = __uint_as_float(raw.y & 0xffff0000u);
  }
  return out;
}

}  // namespace conclave::kernels::cuda
