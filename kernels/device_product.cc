// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_product.h"

#include <algorithm>

namespace conclave::kernels {

int32_t GroupsMax(int64_t pairs, int32_t experts, int32_t group_rows) {
  // Every expert may leave one group that is not full.
  return static_cast<int32_t>(
      std::min(pairs, pairs / group_rows + std::min<int64_t>(experts, pairs)));
}

}  // namespace conclave::kernels
