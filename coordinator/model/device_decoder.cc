// SPDX-License-Identifier: Apache-2.0

// decoder.cc for one GPU: the same pass, in the blocks of kernels/device_*.h.
// The residual sum stands at the head of the norm that follows it, and the
// shared expert is one more expert of every row.

#include "coordinator/model/device_decoder.h"

#include <algorithm>

#include "common/status_macros.h"
#include "coordinator/model/device_decoder_impl.h"
#include "kernels/device_moe.h"
#include "kernels/device_rows.h"
#include "kernels/device_sampling.h"

namespace conclave::model {

using kernels::DeviceAddend;
using kernels::DeviceGraph;
using kernels::DeviceRows;
using kernels::StepBatch;

// Into one plane, or where the linears are one matrix into *planes of them.
absl::Status DeviceDecoder::Impl::Product(const DeviceLinears& linears,
                                          const DeviceRows& x,
                                          const void* low,
                                          int32_t rows,
                                          float* out,
                                          int32_t* planes) {
  const int32_t parts =
      planes == nullptr || linears.parts.size() > 1
          ? 1
          : kernels::DevicePlanes(*queue, linears.parts[0], rows, x.bf16);
  if (planes != nullptr) *planes = parts;
  for (const kernels::DeviceMatrix& matrix : linears.parts) {
    RETURN_IF_ERROR(
        kernels::DeviceProduct(queue.get(), matrix, x, low, rows, parts, out));
  }
  return absl::OkStatus();
}

// m.y = mixer(m.u)
absl::Status DeviceDecoder::Impl::Mix(size_t index,
                                      const kernels::DeviceStep& step,
                                      DeviceAddend* sum) {
  const DeviceLayer& layer = weights.layers[index];
  if (layer.out.parts.empty()) return absl::OkStatus();
  if (Launches(kProjections)) {
    RETURN_IF_ERROR(
        Product(layer.in, m.u(), nullptr, step.rows, m.projected()));
  }
  if (layer.full_attention && Launches(kAttention)) {
    RETURN_IF_ERROR(kernels::DeviceAttention(queue.get(),
                                             m.attention(),
                                             layer.attention,
                                             m.kv(index),
                                             step,
                                             m.projected(),
                                             m.scratch(),
                                             m.mixed()));
  }
  if (!layer.full_attention && Launches(kGdn)) {
    RETURN_IF_ERROR(kernels::DeviceGdn(queue.get(),
                                       m.gdn_shape(),
                                       layer.gdn,
                                       m.gdn(index),
                                       step,
                                       m.gdn_form(),
                                       m.projected(),
                                       m.scratch(),
                                       m.mixed()));
  }
  if (Launches(kProjections)) {
    RETURN_IF_ERROR(Product(
        layer.out, m.mixed(), nullptr, step.rows, m.y(), &mixer_planes));
  }
  *sum = {.dense = m.y(), .planes = mixer_planes};
  return absl::OkStatus();
}

// m.pairs = what the experts of `entries` on this device say of m.u
absl::Status DeviceDecoder::Impl::Stacks(
    size_t index, const kernels::DeviceEntries& entries) {
  for (const kernels::DeviceExpertStack& stack :
       weights.layers[index].experts) {
    RETURN_IF_ERROR(kernels::DeviceExperts(
        queue.get(), stack, entries, m.u(), m.expert_hidden(), m.pairs()));
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::Experts(size_t index,
                                          const kernels::DeviceEntries& entries,
                                          DeviceAddend* sum) {
  const DeviceLayer& layer = weights.layers[index];
  if (Launches(kRouter)) {
    int32_t planes = 1;
    RETURN_IF_ERROR(Product(layer.router,
                            m.u(),
                            m.low(),
                            entries.rows,
                            m.router_logits(),
                            &planes));
    RETURN_IF_ERROR(
        kernels::DeviceRoute(queue.get(), m.router_logits(), planes, entries));
  }
  *sum = {.pairs = m.pairs(), .entries = &entries};
  if (!Launches(kExperts)) return absl::OkStatus();
  if (layer.routed) return Stacks(index, entries);
  // The shared expert is computed while the rows are away.
  RETURN_IF_ERROR(FinalHidden(entries.rows));
  RETURN_IF_ERROR(
      elsewhere.Start(LayerId{static_cast<int32_t>(index)}, entries, hidden));
  RETURN_IF_ERROR(Stacks(index, elsewhere.shared()));
  RETURN_IF_ERROR(elsewhere.Finish(m.y()));
  *sum = {.dense = m.y(), .pairs = m.pairs(), .entries = &elsewhere.shared()};
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::Layers(const kernels::DeviceStep& step,
                                         Probe* probe) {
  const kernels::DeviceEntries entries = m.EntriesOf(step.rows);
  if (options.experts != nullptr) {
    RETURN_IF_ERROR(elsewhere.BeginStep(entries));
  }
  RETURN_IF_ERROR(kernels::DeviceEmbed(
      queue.get(), weights.embedding, step.token, step.rows, m.x()));
  RETURN_IF_ERROR(Show(probe, -1, step.rows));
  DeviceAddend moe;  // of the layer before
  const auto layers = static_cast<int32_t>(weights.layers.size());
  for (int32_t i = 0; i < layers; ++i) {
    const DeviceLayer& layer = weights.layers[static_cast<size_t>(i)];
    RETURN_IF_ERROR(Norm(step.rows, moe, 2 * i - 1, layer.input_norm, nullptr));
    if (i > 0) RETURN_IF_ERROR(Show(probe, i - 1, step.rows));
    DeviceAddend mixed;  // nothing on a rank without heads
    RETURN_IF_ERROR(Mix(static_cast<size_t>(i), step, &mixed));
    RETURN_IF_ERROR(
        Norm(step.rows, mixed, 2 * i, layer.post_attention_norm, m.low()));
    RETURN_IF_ERROR(Experts(static_cast<size_t>(i), entries, &moe));
    RETURN_IF_ERROR(ShowRouting(probe, i, entries));
  }
  RETURN_IF_ERROR(
      Norm(step.rows, moe, 2 * layers - 1, weights.final_norm, nullptr));
  return Show(probe, layers - 1, step.rows);
}

absl::Status DeviceDecoder::Impl::PassToLogits(const Sizes& sizes) {
  RETURN_IF_ERROR(Layers(arrays.At(sizes).step, nullptr));
  if (!Launches(kHead) || weights.head.parts.empty()) return absl::OkStatus();
  return Product(weights.head, m.u(), nullptr, sizes.rows, m.logits());
}

// Everything of a step of one row per sequence, sampled greedily.
absl::Status DeviceDecoder::Impl::Pass(const Sizes& sizes) {
  RETURN_IF_ERROR(PassToLogits(sizes));
  if (!Launches(kSample) || weights.head.parts.empty()) {
    return absl::OkStatus();
  }
  return kernels::DeviceSample(queue.get(),
                               m.logits(),
                               sizes.rows,
                               weights.config.vocab_size,
                               weights.config.vocab_size,
                               m.greedy(),
                               nullptr,
                               m.sampling_scratch(),
                               m.next());
}

// Logits of the wanted rows, as many at a time as there is room for.
absl::Status DeviceDecoder::Impl::Head(const Sizes& sizes) {
  const int32_t vocab = weights.config.vocab_size;
  logits.resize(static_cast<size_t>(sizes.wanted) * vocab);
  const int32_t* rows = arrays.At(sizes).wanted;
  for (int32_t begin = 0; begin < sizes.wanted; begin += m.wanted_max()) {
    const int32_t count = std::min(m.wanted_max(), sizes.wanted - begin);
    RETURN_IF_ERROR(kernels::DeviceAddNorm(queue.get(),
                                           count,
                                           weights.config.hidden_size,
                                           {},
                                           weights.final_norm,
                                           weights.config.rms_norm_eps,
                                           rows + begin,
                                           m.x(),
                                           m.wanted(),
                                           nullptr));
    RETURN_IF_ERROR(
        Product(weights.head, m.wanted(), nullptr, count, m.logits()));
    RETURN_IF_ERROR(
        queue->Download(m.logits(),
                        static_cast<size_t>(count) * vocab * sizeof(float),
                        &logits[static_cast<size_t>(begin) * vocab]));
  }
  return absl::OkStatus();
}

absl::StatusOr<DeviceGraph> DeviceDecoder::Impl::Record(const Sizes& sizes) {
  RETURN_IF_ERROR(queue->BeginRecording());
  const absl::Status status = Pass(sizes);
  absl::StatusOr<DeviceGraph> recorded = queue->EndRecording();
  RETURN_IF_ERROR(status);
  return recorded;
}

DeviceDecoder::Impl::Sizes DeviceDecoder::Impl::SizesOf(
    const StepBatch& batch) const {
  // What fills a step up would travel for nothing.
  return options.record ? DeviceStepArrays::RecordedSizesOf(batch)
                        : DeviceStepArrays::SizesOf(batch, batch.rows);
}

// One row per sequence, by a recorded step.
absl::Status DeviceDecoder::Impl::Recorded(const StepBatch& batch,
                                           std::span<const int32_t> tokens,
                                           Sizes* sizes) {
  *sizes = SizesOf(batch);
  RETURN_IF_ERROR(arrays.Upload(
      queue.get(), *sizes, batch, tokens, {}, options.sizes.kv_blocks));
  if (!options.record) return Pass(*sizes);
  if (options.group != nullptr && recorded_in != options.group->generation()) {
    graphs.clear();
    recorded_in = options.group->generation();
  }
  DeviceGraph& graph = graphs[*sizes];
  if (!graph.recorded()) {
    ASSIGN_OR_RETURN(graph, Record(*sizes));
  }
  return queue->Launch(graph);
}

}  // namespace conclave::model
