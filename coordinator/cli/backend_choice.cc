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
  if (config.workers_size() > 0 && c.backend() == "auto") {
    return kernels::OnCpu("the file has workers");
  }
  if (config.workers_size() > 0 && c.backend() == "cuda") {
    return absl::InvalidArgumentError(
        "coordinator.backend: cuda computes the whole model on one GPU and "
        "cannot leave experts to workers yet; take the workers out of the "
        "file, or use auto or cpu");
  }
  return kernels::ChooseBackend({.backend = c.backend(),
                                 .gpu = c.gpu(),
                                 .backend_name = "coordinator.backend:",
                                 .gpu_name = "coordinator.gpu:"},
                                list);
}

}  // namespace conclave::cli
