// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/v1/config.pb.h"
#include "kernels/device_choice.h"

namespace conclave::cli {

using kernels::BackendChoice;
using kernels::ListGpusFn;

// What coordinator.backend means on this machine. `auto` is the GPU
// coordinator.gpu where that has compute capability 8, else the CPU.
// InvalidArgument: a GPU that does not exist. Other errors: `cuda` cannot be
// had, and why. `list` is asked only where a GPU comes into question.
absl::StatusOr<BackendChoice> ChooseBackend(const v1::ClusterConfig& config,
                                            const ListGpusFn& list);

// "GPU 0 (NVIDIA H200)"; InvalidArgument names those that there are.
absl::StatusOr<std::string> GpuName(
    const std::vector<kernels::CudaDevice>& gpus, int32_t gpu);

}  // namespace conclave::cli
