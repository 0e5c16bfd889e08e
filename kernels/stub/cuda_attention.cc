// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_attention.h"

namespace conclave::kernels {

absl::Status DeviceAttention(DeviceQueue*,
                             const AttentionShape&,
                             const DeviceAttentionWeights&,
                             const DeviceKv&,
                             const DeviceStep&,
                             const float*,
                             float*,
                             const DeviceRows&) {
  return absl::UnimplementedError("this build has no CUDA (CONCLAVE_CUDA=OFF)");
}

size_t AttentionScratchFloats(const DeviceQueue&,
                              const AttentionShape&,
                              int32_t,
                              int32_t) {
  return 0;
}

}  // namespace conclave::kernels
