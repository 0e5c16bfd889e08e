// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

// Four columns, and how they lie in a state (DeviceGdnState::recurrent), whose
// numbers are float or __nv_bfloat16.
namespace conclave::kernels::cuda::gdn {

struct alignas(16) Quad {
  float x[4] = {0, 0, 0, 0};
};

// From L2: the kernel that wrote it may have run beside this one's beginning.
__device__ __forceinline__ Quad Load(const float* from) {
  const float4 v = __ldcg(reinterpret_cast<const float4*>(from));
  return {v.x, v.y, v.z, v.w};
}
__device__ __forceinline__ void Store(float* to, const Quad& v) {
  *reinterpret_cast<Quad*>(to) = v;
}

// Four columns of a state as they lie in memory: a Quad, or two pairs of bf16,
// which take half the registers as long as nobody unpacks them.
struct alignas(8) Pairs {
  uint32_t x[2] = {0, 0};
};
template <typename T>
using Stored = std::conditional_t<std::is_same_v<T, float>, Quad, Pairs>;

__device__ __forceinline__ Quad LoadState(const float* from) {
  return Load(from);
}
__device__ __forceinline__ Pairs LoadState(const __nv_bfloat16* from) {
  const uint2 v = __ldcg(reinterpret_cast<const uint2*>(from));
  return {v.x, v.y};
}
__device__ __forceinline__ Quad Numbers(const Quad& v) { return v; }
__device__ __forceinline__ Quad Numbers(const Pairs& v) {
  return {__uint_as_float(v.x[0] << 16),
          __uint_as_float(v.x[0] & 0xffff0000u),
          __uint_as_float(v.x[1] << 16),
          __uint_as_float(v.x[1] & 0xffff0000u)};
}
__device__ __forceinline__ uint2 Rounded(const Quad& v) {
  const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(v.x[0], v.x[1]),
                                   __floats2bfloat162_rn(v.x[2], v.x[3])};
  return *reinterpret_cast<const uint2*>(pairs);
}
__device__ __forceinline__ void StoreState(float* to, const Quad& v) {
  Store(to, v);
}
__device__ __forceinline__ void StoreState(__nv_bfloat16* to, const Quad& v) {
  *reinterpret_cast<uint2*>(to) = Rounded(v);
}
// One number of a state.
__device__ __forceinline__ float LoadNumber(const float* from) {
  return __ldcg(from);
}
__device__ __forceinline__ float LoadNumber(const __nv_bfloat16* from) {
  return __bfloat162float(__ushort_as_bfloat16(
      __ldcg(reinterpret_cast<const unsigned short*>(from))));
}
__device__ __forceinline__ void StoreNumber(float* to, float x) { *to = x; }
__device__ __forceinline__ void StoreNumber(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

// States are written once in a step and all of them exceed the cache.
__device__ __forceinline__ void StoreOnce(float* to, const Quad& v) {
  __stcs(reinterpret_cast<float4*>(to),
         make_float4(v.x[0], v.x[1], v.x[2], v.x[3]));
}
__device__ __forceinline__ void StoreOnce(__nv_bfloat16* to, const Quad& v) {
  __stcs(reinterpret_cast<uint2*>(to), Rounded(v));
}

}  // namespace conclave::kernels::cuda::gdn
