// SPDX-License-Identifier: Apache-2.0
// What benchmarks ask of a device decoder.
#include "common/status_macros.h"
#include "coordinator/model/device_decoder_impl.h"
#include "coordinator/model/step_check.h"
#include "kernels/device_matrix.h"

namespace conclave::model {

using kernels::DeviceGraph;
using kernels::StepBatch;

absl::StatusOr<double> DeviceDecoder::Time(const StepBatch& batch,
                                           std::span<const int32_t> tokens,
                                           uint32_t blocks,
                                           int32_t repeats) {
  Impl& d = *impl_;
  RETURN_IF_ERROR(
      CheckStep(d.weights.config, d.options.sizes, batch, tokens, {}));
  const auto sizes = DeviceStepArrays::RecordedSizesOf(batch);
  RETURN_IF_ERROR(
      d.Upload(sizes, batch, tokens, {}, d.options.sizes.kv_blocks, false));
  d.blocks = blocks;
  absl::StatusOr<DeviceGraph> graph = d.Record(sizes);
  d.blocks = kAll;
  RETURN_IF_ERROR(graph.status());
  RETURN_IF_ERROR(d.queue->Launch(*graph));  // to warm up
  RETURN_IF_ERROR(d.queue->Mark(0));
  for (int32_t i = 0; i < repeats; ++i) {
    RETURN_IF_ERROR(d.queue->Launch(*graph));
  }
  RETURN_IF_ERROR(d.queue->Mark(1));
  RETURN_IF_ERROR(d.Joined());
  ASSIGN_OR_RETURN(const double seconds, d.queue->Between());
  return seconds / repeats;
}

uint64_t DeviceDecoder::WeightBytesOf(Block block) const {
  const auto sum = [](const DeviceLinears& linears) {
    uint64_t bytes = 0;
    for (const kernels::DeviceMatrix& part : linears.parts) {
      bytes += part.bytes();
    }
    return bytes;
  };
  if (block == kHead) return sum(impl_->weights.head);
  uint64_t bytes = 0;
  for (const DeviceLayer& layer : impl_->weights.layers) {
    if (block == kProjections) bytes += sum(layer.in) + sum(layer.out);
    if (block == kRouter) bytes += sum(layer.router);
    if (block != kExperts) continue;
    for (const kernels::DeviceExpertStack& stack : layer.experts) {
      bytes += stack.gate_up.bytes() + stack.down.bytes();
    }
  }
  return bytes;
}

absl::Status DeviceDecoder::MakeUpCache() {
  constexpr uint64_t kSeed = 77;
  for (size_t i = 0; i < impl_->weights.layers.size(); ++i) {
    if (!impl_->weights.layers[i].full_attention) continue;
    const auto bytes = static_cast<int64_t>(impl_->m.kv_bytes(i));
    const bool bf16 = impl_->options.kv == kernels::KvDType::kBF16;
    RETURN_IF_ERROR(kernels::FillMadeUpTable(
        impl_->queue.get(),
        kSeed + i,
        {.data = impl_->m.kv(i).data,
         .dtype = bf16 ? DType::kBF16 : DType::kU8,
         .rows = 1,
         .cols = 0,
         .row_stride = bf16 ? bytes / 2 : bytes,
         .packing =
             bf16 ? kernels::Packing::kPlain : kernels::Packing::kFp8Block}));
  }
  return impl_->queue->Wait();
}

}  // namespace conclave::model
