// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/weight_layout.h"

namespace conclave {

// The experts of one shard and layer as memory, not owned: what a checkpoint
// fills and kernels read. gate and up are [slices, width, hidden], down is
// [slices, hidden, width], each in a storage of its own.
struct StackedExperts {
  int32_t slices = 0;
  int32_t width = 0;
  int32_t hidden = 0;
  StoredWeight gate, up, down;
};

}  // namespace conclave
