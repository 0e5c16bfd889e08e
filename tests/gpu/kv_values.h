// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/host/kv_numbers.h"

// What a KV cache makes of a float.
namespace conclave::kernels {

// Largest relative error of outputs and of appended keys and values.
inline double ToleranceOf(KvDType dtype) {
  return dtype == KvDType::kF32 ? 1e-5 : dtype == KvDType::kBF16 ? 1e-2 : 6e-2;
}

inline float Rounded(KvDType dtype, float x) {
  if (dtype == KvDType::kF32) return x;
  return dtype == KvDType::kBF16 ? FromBf16(ToBf16(x)) : FromFp8(ToFp8(x));
}

}  // namespace conclave::kernels
