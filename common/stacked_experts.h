// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace conclave {

// The experts of one shard and layer as memory, not owned: what a checkpoint
// fills and kernels read. gate_up is [slices, 2, width, hidden], down
// [slices, hidden, width], in kF32, kBF16 or kF8E4M3; the latter with bf16
// scales per block of up_block rows of gate_up, or down_block rows of down,
// and kFp8Block columns.
struct StackedExperts {
  int32_t slices = 0;
  int32_t width = 0;
  int32_t hidden = 0;
  DType dtype = DType::kBF16;
  const void* gate_up = nullptr;
  const void* down = nullptr;
  const void* gate_up_scales = nullptr;
  const void* down_scales = nullptr;
  int32_t up_block = 0;
  int32_t down_block = 0;
};

}  // namespace conclave
