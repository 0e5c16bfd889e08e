// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/device_pairs.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {

absl::Status DeviceSumPairs(DeviceQueue* queue,
                            const DevicePairSums& sums,
                            const float* y,
                            int32_t cols,
                            float* out) {
  if (cols % 4 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows of ", cols, " on a device: a multiple of 4"));
  }
  host::StreamOf(queue)->Do([=] {
    for (int32_t r = 0; r < sums.rows; ++r) {
      float* to = out + int64_t{r} * cols;
      std::fill_n(to, cols, 0.0f);
      for (int32_t i = sums.first[r]; i < sums.first[r + 1]; ++i) {
        const float* from = y + int64_t{sums.pair[i]} * cols;
        for (int32_t c = 0; c < cols; ++c) {
          to[c] = std::fma(from[c], sums.weight[i], to[c]);
        }
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace conclave::kernels
