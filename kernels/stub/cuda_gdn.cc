// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_gdn.h"

namespace conclave::kernels {

absl::Status DeviceGdn(DeviceQueue*,
                       const GdnShape&,
                       const DeviceGdnWeights&,
                       const DeviceGdnState&,
                       const DeviceStep&,
                       const float*,
                       float*,
                       const DeviceRows&) {
  return absl::UnimplementedError("this build has no CUDA (CONCLAVE_CUDA=OFF)");
}

size_t GdnScratchFloats(const GdnShape&, int32_t) { return 0; }

}  // namespace conclave::kernels
