// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Copies from memory to shared memory that go on while a thread does other
// things (cp.async).
namespace conclave::kernels::cuda {

__device__ __forceinline__ void CopyAsync16(void* to, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile(
      "cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(address),
      "l"(from));
}
// Zeros where `copies` is false; `from` is not read then.
__device__ __forceinline__ void CopyAsync16OrZero(void* to,
                                                  const void* from,
                                                  bool copies) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address),
               "l"(from),
               "r"(copies ? 16 : 0));
}
template <int Bytes>  // 4 or 8
__device__ __forceinline__ void CopyAsync(void* to, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address),
               "l"(from),
               "n"(Bytes));
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;");
}
template <int Pending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending));
}

}  // namespace conclave::kernels::cuda
