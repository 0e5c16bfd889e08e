// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Copies from memory to shared memory that go on while a thread does other
// things (cp.async). Shared memory by its own addresses, of 32 bits, costs no
// conversion at each access.
namespace conclave::kernels::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to),
               "l"(from));
}
__device__ __forceinline__ void CopyAsync16(void* to, const void* from) {
  CopyAsync16(SharedAddress(to), from);
}
// Zeros where `copies` is false; `from` is not read then.
__device__ __forceinline__ void CopyAsync16OrZero(void* to,
                                                  const void* from,
                                                  bool copies) {
  const uint32_t address = SharedAddress(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address),
               "l"(from),
               "r"(copies ? 16 : 0));
}
// Nothing where `copies` is false.
template <int Bytes>  // 4 or 8
__device__ __forceinline__ void CopyAsync(uint32_t to,
                                          const void* from,
                                          bool copies) {
  asm volatile(
      "{\n"
      ".reg .pred copies;\n"
      "setp.ne.b32 copies, %3, 0;\n"
      "@copies cp.async.ca.shared.global [%0], [%1], %2;\n"
      "}" ::"r"(to),
      "l"(from),
      "n"(Bytes),
      "r"(static_cast<int>(copies)));
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;");
}
template <int Pending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending));
}

__device__ __forceinline__ uint4 LoadShared16(uint32_t from) {
  uint4 out;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(from)
               : "memory");
  return out;
}
__device__ __forceinline__ uint2 LoadShared8(uint32_t from) {
  uint2 out;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(out.x), "=r"(out.y)
               : "r"(from)
               : "memory");
  return out;
}
__device__ __forceinline__ uint32_t LoadShared4(uint32_t from) {
  uint32_t out;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(out) : "r"(from) : "memory");
  return out;
}

}  // namespace conclave::kernels::cuda
