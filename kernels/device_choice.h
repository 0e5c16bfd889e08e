// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/context.h"
#include "kernels/device.h"

namespace conclave::kernels {

// kernels/device.h : ListCudaDevices, or what a test says.
using ListGpusFn = std::function<absl::StatusOr<std::vector<CudaDevice>>(
    std::optional<int32_t> free_of)>;

// What a user asked for, and by which names errors tell it.
struct BackendWish {
  std::string backend;  // "auto", "cuda", "cpu" or "cpu-plain"
  int32_t gpu = 0;
  std::string backend_name;  // "coordinator.backend:", "--backend"
  std::string gpu_name;      // "coordinator.gpu:", "--gpu:"
};

struct BackendChoice {
  Backend backend = Backend::kCpu;
  std::string line;  // for the log: what it is and why; empty: as asked
  std::string gpu;   // "GPU 0 (NVIDIA H200)"; empty: none
};

// What that means on this machine. `auto` is the GPU where there is one of
// compute capability 8, else the CPU. InvalidArgument: another word, or a GPU
// that does not exist. Other errors: `cuda` cannot be had, and why. `list` is
// asked only where a GPU comes into question.
absl::StatusOr<BackendChoice> ChooseBackend(const BackendWish& wish,
                                            const ListGpusFn& list);

// Of a device's memory, kept free for recorded steps, rounded allocations and
// CUDA itself.
uint64_t DeviceReserve(uint64_t total_bytes);

BackendChoice OnCpu(const std::string& why);

// "GPU 0 (NVIDIA H200)"; InvalidArgument, beginning with `asked_by`, names
// those that there are.
absl::StatusOr<std::string> GpuName(const std::vector<CudaDevice>& gpus,
                                    int32_t gpu,
                                    const std::string& asked_by);

}  // namespace conclave::kernels
