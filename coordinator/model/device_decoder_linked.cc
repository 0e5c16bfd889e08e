// SPDX-License-Identifier: Apache-2.0
// A device decoder whose routed experts are behind a link: rows of a layer
// leave before the shared expert is computed, and sums come in after it.
#include "common/status_macros.h"
#include "coordinator/model/device_decoder_impl.h"
#include "coordinator/model/device_sampler.h"

namespace conclave::model {

DeviceDecoder::Impl::~Impl() {
  if (options.linked == nullptr) return;
  graphs.clear();
  options.linked->Detach();
}

absl::Status DeviceDecoder::Impl::BeginLinked(int32_t rows, bool record) {
  if (options.linked == nullptr) return absl::OkStatus();
  return options.linked->BeginStep(rows, record);
}

absl::Status DeviceDecoder::Impl::LinkedLayer(size_t index, Slice* slice) {
  const LayerId layer{static_cast<int32_t>(index)};
  RETURN_IF_ERROR(
      options.linked->Start(layer, slice->entries, m.u(slice->row)));
  RETURN_IF_ERROR(Stacks(index, *slice, options.linked->shared()));
  return options.linked->Finish(layer, m.pairs(slice->row), &slice->moe);
}

void DeviceDecoder::Impl::DropLinked() {
  graphs.clear();
  for (DeviceSampler* sampler : samplers) sampler->Forget();
  options.linked->Leave();
}

}  // namespace conclave::model
