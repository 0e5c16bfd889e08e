// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/host_decoder.h"
#include "kernels/device.h"
#include "kernels/device_choice.h"

namespace conclave::model {
namespace {

// How errors name the device.
absl::StatusOr<std::string> NameOf(int32_t gpu) {
  if (gpu == kernels::kHostDevice) return "the plain twin of a GPU";
  ASSIGN_OR_RETURN(const std::vector<kernels::CudaDevice> devices,
                   kernels::ListCudaDevices());
  if (gpu < 0 || gpu >= std::ssize(devices)) {
    return absl::UnavailableError(
        absl::StrCat("no GPU ", gpu, "; this machine has ", devices.size()));
  }
  return kernels::GpuName(devices, gpu, "gpu:");
}

absl::StatusOr<std::unique_ptr<Decoder>> CreateOnDevice(
    const checkpoint::Checkpoint& checkpoint,
    experts::Experts* experts,
    StateSizes sizes,
    kernels::Activations activations,
    const DevicePlace& place) {
  ASSIGN_OR_RETURN(std::string name, NameOf(place.gpu));
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::DeviceQueue> queue,
                   kernels::DeviceQueue::Create(place.gpu));
  RoutedHere here;
  if (experts != nullptr) {
    here = place.routed_here;
    here.resize(checkpoint.config().full_attention.size());
    // Nothing is elsewhere: steps are recorded.
    if (std::find(here.begin(), here.end(), false) == here.end()) {
      experts = nullptr;
    }
  }
  ASSIGN_OR_RETURN(
      DeviceWeights weights,
      LoadDeviceWeights(
          checkpoint, queue.get(), {.here = here, .progress = place.progress}));
  const int32_t rows =
      sizes.step_rows > 0 ? sizes.step_rows : limits::kStepRowsMax;
  return DeviceDecoder::Create(
      std::move(queue),
      std::move(weights),
      {.sizes = sizes,
       .rows_max = rows,
       .sequences_max = sizes.state_slots,
       .exact = activations == kernels::Activations::kF32,
       .kv = place.kv,
       .gdn = place.gdn,
       .experts = experts,
       .name = std::move(name)});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    const checkpoint::Checkpoint& checkpoint,
    experts::Experts* experts,
    kernels::Backend backend,
    ThreadPool* pool,
    StateSizes sizes,
    kernels::Activations activations,
    const DevicePlace& place) {
  if (backend == kernels::Backend::kCuda) {
    return CreateOnDevice(checkpoint, experts, sizes, activations, place);
  }
  return HostDecoder::Create(checkpoint,
                             {.experts = experts,
                              .backend = backend,
                              .pool = pool,
                              .sizes = sizes,
                              .activations = activations});
}

}  // namespace conclave::model
