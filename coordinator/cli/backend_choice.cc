// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/backend_choice.h"

namespace conclave::cli {

absl::StatusOr<std::string> GpuName(
    const std::vector<kernels::CudaDevice>& gpus, int32_t gpu) {
  return kernels::GpuName(gpus, gpu, "coordinator.gpu:");
}

absl::StatusOr<BackendChoice> ChooseBackend(const v1::ClusterConfig& config,
                                            const ListGpusFn& list) {
  const v1::Coordinator& c = config.coordinator();
  return kernels::ChooseBackend({.backend = c.backend(),
                                 .gpu = c.gpus_size() > 0 ? c.gpus(0) : c.gpu(),
                                 .backend_name = "coordinator.backend:",
                                 .gpu_name = "coordinator.gpu:"},
                                list);
}

}  // namespace conclave::cli
