// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/backend_choice.h"

#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/memory.h"
#include "common/status_macros.h"

namespace conclave::cli {
namespace {

constexpr int32_t kComputeMajorMin = 8;

BackendChoice OnCpu(const std::string& why) {
  return {.backend = kernels::Backend::kCpu,
          .line = absl::StrCat("computing on the CPU: ", why)};
}

}  // namespace

absl::StatusOr<std::string> GpuName(
    const std::vector<kernels::CudaDevice>& gpus, int32_t gpu) {
  const auto name = [&](int32_t i) {
    return absl::StrCat(i, " (", gpus[static_cast<size_t>(i)].name, ")");
  };
  if (gpu >= 0 && gpu < std::ssize(gpus)) {
    return absl::StrCat("GPU ", name(gpu));
  }
  std::vector<std::string> known;
  for (int32_t i = 0; i < std::ssize(gpus); ++i) known.push_back(name(i));
  return absl::InvalidArgumentError(
      absl::StrCat("coordinator.gpu: there is no "
                   "GPU ",
                   gpu,
                   " here, only ",
                   absl::StrJoin(known, ", ")));
}

absl::StatusOr<BackendChoice> ChooseBackend(const v1::ClusterConfig& config,
                                            const ListGpusFn& list) {
  const v1::Coordinator& c = config.coordinator();
  if (c.backend() == "cpu") return BackendChoice{};
  if (c.backend() == "cpu-plain") {
    return BackendChoice{.backend = kernels::Backend::kCpuPlain, .line = {}};
  }
  const bool must = c.backend() == "cuda";
  if (config.workers_size() > 0) {
    if (!must) return OnCpu("the file has workers");
    return absl::InvalidArgumentError(
        "coordinator.backend: cuda computes the whole model on one GPU and "
        "cannot leave experts to workers yet; take the workers out of the "
        "file, or use auto or cpu");
  }
  const auto gpus = list();
  if (!gpus.ok()) {
    if (!must) return OnCpu(std::string(gpus.status().message()));
    return absl::Status(
        gpus.status().code(),
        absl::StrCat("coordinator.backend: cuda: ", gpus.status().message()));
  }
  ASSIGN_OR_RETURN(const std::string name, GpuName(*gpus, c.gpu()));
  const kernels::CudaDevice& gpu = (*gpus)[static_cast<size_t>(c.gpu())];
  if (gpu.compute_major < kComputeMajorMin) {
    const std::string why = absl::StrCat(name,
                                         " has compute capability ",
                                         gpu.compute_major,
                                         ".",
                                         gpu.compute_minor,
                                         ", needed is ",
                                         kComputeMajorMin,
                                         ".0");
    if (!must) return OnCpu(why);
    return absl::FailedPreconditionError(
        absl::StrCat("coordinator.backend: cuda: ", why));
  }
  return BackendChoice{.backend = kernels::Backend::kCuda,
                       .line = absl::StrCat("computing on ",
                                            name,
                                            ", ",
                                            Gigabytes(gpu.memory_free_bytes),
                                            " free")};
}

}  // namespace conclave::cli
