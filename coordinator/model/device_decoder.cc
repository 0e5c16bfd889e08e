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
                                      const Slice& slice,
                                      DeviceAddend* sum) {
  const DeviceLayer& layer = weights.layers[index];
  const kernels::DeviceStep& step = slice.step;
  if (layer.out.parts.empty()) return absl::OkStatus();
  if (Launches(kProjections)) {
    RETURN_IF_ERROR(
        Product(layer.in, m.u(slice.row), nullptr, step.rows, m.projected()));
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
    size_t index, const Slice& slice, const kernels::DeviceEntries& entries) {
  for (const kernels::DeviceExpertStack& stack :
       weights.layers[index].experts) {
    RETURN_IF_ERROR(kernels::DeviceExperts(queue.get(),
                                           stack,
                                           entries,
                                           m.u(slice.row),
                                           m.expert_hidden(),
                                           m.pairs(slice.row)));
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::BeginExperts(size_t index, Slice* slice) {
  const DeviceLayer& layer = weights.layers[index];
  if (Launches(kRouter)) {
    int32_t planes = 1;
    RETURN_IF_ERROR(Product(layer.router,
                            m.u(slice->row),
                            m.low(slice->row),
                            slice->step.rows,
                            m.router_logits(),
                            &planes));
    RETURN_IF_ERROR(kernels::DeviceRoute(
        queue.get(), m.router_logits(), planes, slice->entries));
  }
  slice->moe = {.pairs = m.pairs(slice->row), .entries = &slice->entries};
  if (!Launches(kExperts)) return absl::OkStatus();
  if (layer.routed) return Stacks(index, *slice, slice->entries);
  if (options.linked != nullptr) return LinkedLayer(index, slice);
  RoutedElsewhere& others = elsewhere[static_cast<size_t>(slice->number)];
  RETURN_IF_ERROR(DownloadRows(slice->row, slice->step.rows, others.rows()));
  RETURN_IF_ERROR(
      others.Start(LayerId{static_cast<int32_t>(index)}, slice->entries));
  // The shared expert is computed while the rows are away.
  return Stacks(index, *slice, others.shared());
}

absl::Status DeviceDecoder::Impl::EndExperts(size_t index, Slice* slice) {
  if (!Launches(kExperts) || weights.layers[index].routed ||
      options.linked != nullptr) {
    return absl::OkStatus();
  }
  RoutedElsewhere& others = elsewhere[static_cast<size_t>(slice->number)];
  RETURN_IF_ERROR(others.Finish(m.y()));
  slice->moe = {.dense = m.y(),
                .pairs = m.pairs(slice->row),
                .entries = &others.shared()};
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::BeginLayer(size_t index,
                                             Slice* slice,
                                             Probe* probe) {
  const DeviceLayer& layer = weights.layers[index];
  const auto number = static_cast<int32_t>(index);
  if (index > 0) RETURN_IF_ERROR(EndExperts(index - 1, slice));
  RETURN_IF_ERROR(
      Norm(*slice, slice->moe, 2 * number - 1, layer.input_norm, false));
  if (index > 0) RETURN_IF_ERROR(Show(probe, number - 1, slice->step.rows));
  DeviceAddend mixed;  // nothing on a rank without heads
  RETURN_IF_ERROR(Mix(index, *slice, &mixed));
  RETURN_IF_ERROR(
      Norm(*slice, mixed, 2 * number, layer.post_attention_norm, true));
  RETURN_IF_ERROR(BeginExperts(index, slice));
  return ShowRouting(probe, number, slice->entries);
}

// While the experts of one slice are elsewhere, the other one mixes.
absl::Status DeviceDecoder::Impl::Layers(Probe* probe) {
  if (options.experts != nullptr) {
    options.experts->BeginStep(static_cast<int32_t>(slices.size()));
  }
  for (const Slice& slice : slices) {
    if (options.experts != nullptr) {
      RETURN_IF_ERROR(elsewhere[static_cast<size_t>(slice.number)].BeginStep(
          slice.entries));
    }
    RETURN_IF_ERROR(kernels::DeviceEmbed(queue.get(),
                                         weights.embedding,
                                         slice.step.token,
                                         slice.step.rows,
                                         m.x(slice.row)));
    RETURN_IF_ERROR(Show(probe, -1, slice.step.rows));
  }
  const size_t layers = weights.layers.size();
  for (size_t i = 0; i < layers; ++i) {
    for (Slice& slice : slices) RETURN_IF_ERROR(BeginLayer(i, &slice, probe));
  }
  const auto last = static_cast<int32_t>(layers) - 1;
  for (Slice& slice : slices) {
    RETURN_IF_ERROR(EndExperts(layers - 1, &slice));
    RETURN_IF_ERROR(
        Norm(slice, slice.moe, 2 * last + 1, weights.final_norm, false));
    RETURN_IF_ERROR(Show(probe, last, slice.step.rows));
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::PassToLogits(const Sizes& sizes) {
  RETURN_IF_ERROR(Layers(nullptr));
  return Logits(m.u(), sizes.rows, /*again=*/false);
}

// A product's bits do not depend on how its matrix is cut into whole tiles.
absl::Status DeviceDecoder::Impl::Logits(const DeviceRows& x,
                                         int32_t rows,
                                         bool again) {
  if (Launches(kHead) && !weights.head.parts.empty()) {
    RETURN_IF_ERROR(Product(weights.head, x, nullptr, rows, m.logits()));
  }
  return Gather(rows, again);
}

// Everything of a step of one row per sequence, sampled greedily.
absl::Status DeviceDecoder::Impl::Pass(const Sizes& sizes) {
  RETURN_IF_ERROR(PassToLogits(sizes));
  if (!Launches(kSample) || options.rank > 0) return absl::OkStatus();
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

// As many rows at a time as there is room for.
absl::Status DeviceDecoder::Impl::Head(const Sizes& sizes) {
  const int32_t vocab = weights.config.vocab_size;
  const bool keeps = options.rank == 0;
  if (keeps) logits.resize(static_cast<size_t>(sizes.wanted) * vocab);
  const int32_t* rows = arrays.At(sizes).wanted;
  for (int32_t begin = 0; begin < sizes.wanted; begin += m.wanted_max()) {
    const int32_t count = std::min(m.wanted_max(), sizes.wanted - begin);
    if (!weights.head.parts.empty()) {
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
    }
    RETURN_IF_ERROR(Logits(m.wanted(), count, /*again=*/begin > 0));
    if (!keeps) continue;
    // A copy to the host waits without a deadline.
    RETURN_IF_ERROR(Joined());
    RETURN_IF_ERROR(
        queue->Download(m.logits(),
                        static_cast<size_t>(count) * vocab * sizeof(float),
                        &logits[static_cast<size_t>(begin) * vocab]));
  }
  return keeps && sizes.wanted > 0 ? absl::OkStatus() : Joined();
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
  RETURN_IF_ERROR(
      Upload(*sizes, batch, tokens, {}, options.sizes.kv_blocks, true));
  RETURN_IF_ERROR(BeginLinked(sizes->rows, options.record));
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
