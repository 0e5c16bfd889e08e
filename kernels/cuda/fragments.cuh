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

// 16-byte pieces that a lane reads of one unit of one tile.
template <DeviceFormat F>
inline constexpr int kPieces = F == DeviceFormat::kBf16      ? 4
                               : F == DeviceFormat::kAffine4 ? 1
                                                             : 2;
template <DeviceFormat F>
inline constexpr int kUnitBytes = kPieces<F>* kLanes * 16;
// Products per step: codes of 8 bits are two codes of 4.
template <DeviceFormat F>
inline constexpr int kPlanes = F == DeviceFormat::kAffine8 ? 2 : 1;
template <DeviceFormat F>
inline constexpr bool kIsAffine =
    F == DeviceFormat::kAffine4 || F == DeviceFormat::kAffine8;

// Weights are read once: past the first-level cache, where rows live.
__device__ __forceinline__ uint4 LoadStreaming(const void* from) {
  uint4 out;
  asm volatile(
      "ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
      : "l"(from));
  return out;
}

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

// Codes q of 4 bits as bf16 numbers 128 + q, exact; Decode takes 128 off.
__device__ __forceinline__ void NibbleFragments(uint32_t word,
                                                uint32_t (&a)[4]) {
  constexpr uint32_t kMask = 0x000f000f;
  constexpr uint32_t kOffset = 0x43004300;  // 128, twice
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = ((word >> (4 * i)) & kMask) | kOffset;
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

__device__ __forceinline__ float HalfToFloat(uint16_t bits, bool f16) {
  return f16 ? __half2float(__ushort_as_half(bits))
             : __uint_as_float(static_cast<uint32_t>(bits) << 16);
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
  int32_t group;
  int32_t out_cols;
  bool f16;
  bool biases;
  // Bytes from one matrix of the stack to the next.
  uint64_t data_stride;
  uint64_t scale_stride;
};

MatrixArgs ArgsOf(const DeviceMatrix& matrix);

__host__ __device__ __forceinline__ int ScaleGroups(const MatrixArgs& m) {
  return (m.units * kUnitCols + m.group - 1) / m.group;
}

// Raw scales of a lane: {scale, bias} of rows g and g + 8.
template <DeviceFormat F>
__device__ __forceinline__ uint2 LoadScales(
    const MatrixArgs& m, const uint8_t* scales, int tile, int group, int g) {
  if constexpr (F == DeviceFormat::kBf16) {
    return {0, 0};
  } else if constexpr (F == DeviceFormat::kFp8) {
    const auto at = static_cast<int64_t>(tile) * ScaleGroups(m) + group;
    return {__ldg(reinterpret_cast<const uint16_t*>(scales) + at), 0};
  } else {
    const auto at =
        (static_cast<int64_t>(tile) * ScaleGroups(m) + group) * 8 + g;
    if (m.biases) return __ldg(reinterpret_cast<const uint2*>(scales) + at);
    const uint32_t both = __ldg(reinterpret_cast<const uint32_t*>(scales) + at);
    return {both & 0xffff, both >> 16};
  }
}

template <DeviceFormat F>
__device__ __forceinline__ RowScales Scales(const MatrixArgs& m, uint2 raw) {
  RowScales out = {};
  if constexpr (F == DeviceFormat::kFp8) {
    out.scale[0] = out.scale[1] = HalfToFloat(raw.x & 0xffff, false);
  } else if constexpr (kIsAffine<F>) {
    // Without biases the middle of the codes is zero.
    constexpr float kMiddle = F == DeviceFormat::kAffine4 ? 8.0f : 128.0f;
    out.scale[0] = HalfToFloat(raw.x & 0xffff, m.f16);
    out.scale[1] = HalfToFloat(raw.y & 0xffff, m.f16);
    out.bias[0] =
        m.biases ? HalfToFloat(raw.x >> 16, m.f16) : -kMiddle * out.scale[0];
    out.bias[1] =
        m.biases ? HalfToFloat(raw.y >> 16, m.f16) : -kMiddle * out.scale[1];
  }
  return out;
}

}  // namespace conclave::kernels::cuda
