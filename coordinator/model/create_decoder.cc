// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/host_decoder.h"

namespace conclave::model {
namespace {

absl::StatusOr<std::unique_ptr<Decoder>> CreateOnDevice(
    const checkpoint::Checkpoint& checkpoint,
    StateSizes sizes,
    kernels::Activations activations) {
  constexpr int32_t kFirstDevice = 0;
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::DeviceQueue> queue,
                   kernels::DeviceQueue::Create(kFirstDevice));
  ASSIGN_OR_RETURN(DeviceWeights weights,
                   LoadDeviceWeights(checkpoint, queue.get(), nullptr));
  const int32_t rows =
      sizes.step_rows > 0 ? sizes.step_rows : limits::kStepRowsMax;
  return DeviceDecoder::Create(
      std::move(queue),
      std::move(weights),
      {.sizes = sizes,
       .rows_max = rows,
       .sequences_max = sizes.state_slots,
       .exact = activations == kernels::Activations::kF32});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    const checkpoint::Checkpoint& checkpoint,
    experts::Experts* experts,
    kernels::Backend backend,
    ThreadPool* pool,
    StateSizes sizes,
    kernels::Activations activations) {
  if (backend == kernels::Backend::kCuda) {
    return CreateOnDevice(checkpoint, sizes, activations);
  }
  return HostDecoder::Create(checkpoint,
                             {.experts = experts,
                              .backend = backend,
                              .pool = pool,
                              .sizes = sizes,
                              .activations = activations});
}

}  // namespace conclave::model
