// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_choice.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/memory.h"
#include "common/status_macros.h"

namespace conclave::kernels {
namespace {

constexpr int32_t kComputeMajorMin = 8;

}  // namespace

uint64_t DeviceReserve(uint64_t total_bytes) {
  constexpr uint64_t kMax = 1'500'000'000;
  constexpr uint64_t kShare = 50;
  return std::min(kMax, total_bytes / kShare);
}

BackendChoice OnCpu(const std::string& why) {
  return {.backend = Backend::kCpu,
          .line = absl::StrCat("computing on the CPU: ", why),
          .gpu = {}};
}

absl::StatusOr<std::string> GpuName(const std::vector<CudaDevice>& gpus,
                                    int32_t gpu,
                                    const std::string& asked_by) {
  const auto name = [&](int32_t i) {
    return absl::StrCat(i, " (", gpus[static_cast<size_t>(i)].name, ")");
  };
  if (gpu >= 0 && gpu < std::ssize(gpus)) {
    return absl::StrCat("GPU ", name(gpu));
  }
  std::vector<std::string> known;
  for (int32_t i = 0; i < std::ssize(gpus); ++i) known.push_back(name(i));
  return absl::InvalidArgumentError(absl::StrCat(asked_by,
                                                 " there is no GPU ",
                                                 gpu,
                                                 " here, only ",
                                                 absl::StrJoin(known, ", ")));
}

absl::StatusOr<BackendChoice> ChooseBackend(const BackendWish& wish,
                                            const ListGpusFn& list) {
  if (wish.backend == "cpu") return BackendChoice{};
  if (wish.backend == "cpu-plain") {
    return BackendChoice{.backend = Backend::kCpuPlain, .line = {}, .gpu = {}};
  }
  const bool must = wish.backend == "cuda";
  if (!must && wish.backend != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat(wish.backend_name,
                     " '",
                     wish.backend,
                     "': auto, cuda, cpu or cpu-plain"));
  }
  const auto gpus = list(wish.gpu);
  if (!gpus.ok()) {
    if (!must) return OnCpu(std::string(gpus.status().message()));
    return absl::Status(
        gpus.status().code(),
        absl::StrCat(wish.backend_name, " cuda: ", gpus.status().message()));
  }
  ASSIGN_OR_RETURN(const std::string name,
                   GpuName(*gpus, wish.gpu, wish.gpu_name));
  const CudaDevice& gpu = (*gpus)[static_cast<size_t>(wish.gpu)];
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
        absl::StrCat(wish.backend_name, " cuda: ", why));
  }
  return BackendChoice{.backend = Backend::kCuda,
                       .line = absl::StrCat("computing on ",
                                            name,
                                            ", ",
                                            Gigabytes(gpu.memory_free_bytes),
                                            " free"),
                       .gpu = name};
}

}  // namespace conclave::kernels
