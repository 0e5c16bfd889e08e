// SPDX-License-Identifier: Apache-2.0

// decoder.cc for one GPU: the same pass, in the blocks of kernels/device_*.h.
// The residual sum stands at the head of the norm that follows it, and the
// shared expert is one more expert of every row.

#include "coordinator/model/device_decoder.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/device_memory.h"
#include "coordinator/model/device_step_arrays.h"
#include "coordinator/model/step_check.h"
#include "kernels/device_moe.h"
#include "kernels/device_rows.h"
#include "kernels/device_sampling.h"

namespace conclave::model {

using kernels::DeviceAddend;
using kernels::DeviceGraph;
using kernels::DeviceQueue;
using kernels::DeviceRows;
using kernels::StepBatch;

struct DeviceDecoder::Impl {
  using Sizes = DeviceStepArrays::Sizes;

  bool Launches(Block block) const { return (blocks & block) != 0; }
  absl::StatusOr<DeviceGraph> Record(const Sizes& sizes);
  absl::Status Layers(const kernels::DeviceStep& step, Probe* probe);
  absl::Status Mix(size_t index, const kernels::DeviceStep& step);
  absl::Status Experts(size_t index, const kernels::DeviceEntries& entries);
  absl::Status Product(const DeviceLinears& linears,
                       const DeviceRows& x,
                       const void* low,
                       int32_t rows,
                       float* out,
                       int32_t* planes = nullptr);
  absl::Status Pass(const Sizes& sizes);
  absl::Status Head(const Sizes& sizes);
  absl::Status Recorded(const StepBatch& batch,
                        std::span<const int32_t> tokens,
                        Sizes* sizes);
  absl::Status Show(Probe* probe, int32_t layer, int32_t rows);
  absl::Status ShowRouting(Probe* probe,
                           int32_t layer,
                           const kernels::DeviceEntries& entries);
  absl::Status FinalHidden(int32_t rows);
  void NotePositions(const StepBatch& batch);

  // The queue outlives what was allocated on it.
  std::unique_ptr<DeviceQueue> queue;
  Options options;
  DeviceWeights weights;
  DeviceMemory m;
  DeviceStepArrays arrays;
  std::map<Sizes, DeviceGraph> graphs;
  uint32_t blocks = kAll;    // that are launched
  int32_t mixer_planes = 1;  // of m.y

  // Position after the row that a slot's state was written by, [slots].
  std::vector<int32_t> next_position;
  std::vector<float> logits, hidden;
  std::vector<uint16_t> rounded;
  std::vector<float> state;
};

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
                                      const kernels::DeviceStep& step) {
  const DeviceLayer& layer = weights.layers[index];
  RETURN_IF_ERROR(Product(layer.in, m.u(), nullptr, step.rows, m.projected()));
  if (layer.full_attention) {
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
                                       m.projected(),
                                       m.scratch(),
                                       m.mixed()));
  }
  if (!Launches(kProjections)) return absl::OkStatus();
  return Product(
      layer.out, m.mixed(), nullptr, step.rows, m.y(), &mixer_planes);
}

// m.pairs = what the experts, the shared one too, say of m.u
absl::Status DeviceDecoder::Impl::Experts(
    size_t index, const kernels::DeviceEntries& entries) {
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
  if (!Launches(kExperts)) return absl::OkStatus();
  for (const kernels::DeviceExpertStack& stack : layer.experts) {
    RETURN_IF_ERROR(kernels::DeviceExperts(
        queue.get(), stack, entries, m.u(), m.expert_hidden(), m.pairs()));
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::Layers(const kernels::DeviceStep& step,
                                         Probe* probe) {
  const int32_t hidden = weights.config.hidden_size;
  const float eps = weights.config.rms_norm_eps;
  const kernels::DeviceEntries entries = m.EntriesOf(step.rows);
  const auto norm = [&](const DeviceAddend& addend, const float* w, void* low) {
    if (!Launches(kNorms)) return absl::OkStatus();
    return kernels::DeviceAddNorm(queue.get(),
                                  step.rows,
                                  hidden,
                                  addend,
                                  w,
                                  eps,
                                  nullptr,
                                  m.x(),
                                  m.u(),
                                  low);
  };
  RETURN_IF_ERROR(kernels::DeviceEmbed(
      queue.get(), weights.embedding, step.token, step.rows, m.x()));
  RETURN_IF_ERROR(Show(probe, -1, step.rows));
  DeviceAddend moe;  // of the layer before
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const DeviceLayer& layer = weights.layers[i];
    RETURN_IF_ERROR(norm(moe, layer.input_norm, nullptr));
    if (i > 0) {
      RETURN_IF_ERROR(Show(probe, static_cast<int32_t>(i) - 1, step.rows));
    }
    RETURN_IF_ERROR(Mix(i, step));
    RETURN_IF_ERROR(norm({.dense = m.y(), .planes = mixer_planes},
                         layer.post_attention_norm,
                         m.low()));
    RETURN_IF_ERROR(Experts(i, entries));
    RETURN_IF_ERROR(ShowRouting(probe, static_cast<int32_t>(i), entries));
    moe = {.pairs = m.pairs(), .entries = &entries};
  }
  RETURN_IF_ERROR(norm(moe, weights.final_norm, nullptr));
  return Show(
      probe, static_cast<int32_t>(weights.layers.size()) - 1, step.rows);
}

// Everything of a step of one row per sequence.
absl::Status DeviceDecoder::Impl::Pass(const Sizes& sizes) {
  RETURN_IF_ERROR(Layers(arrays.At(sizes).step, nullptr));
  if (Launches(kHead)) {
    RETURN_IF_ERROR(
        Product(weights.head, m.u(), nullptr, sizes.rows, m.logits()));
  }
  if (!Launches(kSample)) return absl::OkStatus();
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

// One row per sequence, by a recorded step.
absl::Status DeviceDecoder::Impl::Recorded(const StepBatch& batch,
                                           std::span<const int32_t> tokens,
                                           Sizes* sizes) {
  *sizes = DeviceStepArrays::RecordedSizesOf(batch);
  RETURN_IF_ERROR(arrays.Upload(
      queue.get(), *sizes, batch, tokens, {}, options.sizes.kv_blocks));
  if (!options.record) return Pass(*sizes);
  DeviceGraph& graph = graphs[*sizes];
  if (!graph.recorded()) {
    ASSIGN_OR_RETURN(graph, Record(*sizes));
  }
  return queue->Launch(graph);
}

absl::Status DeviceDecoder::Impl::Show(Probe* probe,
                                       int32_t layer,
                                       int32_t rows) {
  if (probe == nullptr) return absl::OkStatus();
  std::vector<float> x(static_cast<size_t>(rows) * weights.config.hidden_size);
  RETURN_IF_ERROR(queue->Download(m.x(), x.size() * sizeof(float), x.data()));
  probe->Hidden(layer, x);
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::ShowRouting(
    Probe* probe, int32_t layer, const kernels::DeviceEntries& entries) {
  if (probe == nullptr) return absl::OkStatus();
  const auto all = static_cast<size_t>(entries.rows) * entries.per_row;
  std::vector<int32_t> expert(all);
  std::vector<float> weight(all);
  RETURN_IF_ERROR(
      queue->Download(entries.expert, all * sizeof(int32_t), expert.data()));
  RETURN_IF_ERROR(
      queue->Download(entries.weight, all * sizeof(float), weight.data()));
  // The last of a row is the shared expert, which the router does not choose.
  const int32_t top_k = entries.per_row - 1;
  for (int32_t r = 0; r < entries.rows; ++r) {
    std::copy_n(&expert[static_cast<size_t>(r) * entries.per_row],
                top_k,
                &expert[static_cast<size_t>(r) * top_k]);
    std::copy_n(&weight[static_cast<size_t>(r) * entries.per_row],
                top_k,
                &weight[static_cast<size_t>(r) * top_k]);
  }
  const size_t chosen = static_cast<size_t>(entries.rows) * top_k;
  probe->Routed(layer,
                {.rows = entries.rows,
                 .top_k = top_k,
                 .expert = std::span(expert).first(chosen),
                 .weight = std::span(weight).first(chosen)});
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::FinalHidden(int32_t rows) {
  hidden.resize(static_cast<size_t>(rows) * weights.config.hidden_size);
  if (!m.u().bf16) {
    return queue->Download(
        m.u().data, hidden.size() * sizeof(float), hidden.data());
  }
  rounded.resize(hidden.size());
  RETURN_IF_ERROR(queue->Download(
      m.u().data, rounded.size() * sizeof(uint16_t), rounded.data()));
  std::transform(rounded.begin(), rounded.end(), hidden.begin(), FromBf16);
  return absl::OkStatus();
}

absl::StatusOr<StepOutput> DeviceDecoder::Run(
    const StepBatch& batch,
    std::span<const int32_t> tokens,
    std::span<const int32_t> logit_rows,
    Probe* probe) {
  Impl& d = *impl_;
  RETURN_IF_ERROR(
      CheckStep(d.weights.config, d.options.sizes, batch, tokens, logit_rows));
  if (batch.rows > d.options.rows_max ||
      static_cast<int32_t>(batch.sequences.size()) > d.options.sequences_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("step: ",
                     batch.rows,
                     " rows of ",
                     batch.sequences.size(),
                     " sequences; the GPU has room for ",
                     d.options.rows_max,
                     " of ",
                     d.options.sequences_max));
  }
  d.NotePositions(batch);
  const auto wanted = static_cast<int32_t>(logit_rows.size());
  auto sizes = DeviceStepArrays::SizesOf(batch, wanted);
  if (sizes.rows_max == 1 && wanted == batch.rows && probe == nullptr) {
    RETURN_IF_ERROR(d.Recorded(batch, tokens, &sizes));
    d.logits.resize(static_cast<size_t>(wanted) * d.weights.config.vocab_size);
    RETURN_IF_ERROR(d.queue->Download(
        d.m.logits(), d.logits.size() * sizeof(float), d.logits.data()));
  } else {
    RETURN_IF_ERROR(
        d.arrays.Upload(d.queue.get(), sizes, batch, tokens, logit_rows, 0));
    RETURN_IF_ERROR(d.Layers(d.arrays.At(sizes).step, probe));
    RETURN_IF_ERROR(d.Head(sizes));
  }
  RETURN_IF_ERROR(d.FinalHidden(batch.rows));
  return StepOutput{.logits = d.logits, .hidden = d.hidden};
}

void DeviceDecoder::Impl::NotePositions(const StepBatch& batch) {
  for (const kernels::SequenceRows& s : batch.sequences) {
    const size_t states = s.state_slots_out.size();
    for (size_t i = 0; i < states; ++i) {
      const int32_t row = states > 1 ? static_cast<int32_t>(i) : s.rows - 1;
      next_position[s.state_slots_out[i]] = s.position + row + 1;
    }
  }
}

absl::Status DeviceDecoder::RunGreedy(const StepBatch& batch,
                                      std::span<const int32_t> tokens,
                                      std::span<int32_t> next) {
  Impl& d = *impl_;
  RETURN_IF_ERROR(
      CheckStep(d.weights.config, d.options.sizes, batch, tokens, {}));
  if (batch.rows != static_cast<int32_t>(batch.sequences.size()) ||
      next.size() != batch.sequences.size() ||
      batch.rows > d.options.sequences_max) {
    return absl::InvalidArgumentError(
        "step: one row of each sequence, no more of them than there is room "
        "for on the GPU");
  }
  d.NotePositions(batch);
  DeviceStepArrays::Sizes sizes;
  RETURN_IF_ERROR(d.Recorded(batch, tokens, &sizes));
  return d.queue->Download(d.m.next(), next.size_bytes(), next.data());
}

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::Create(
    std::unique_ptr<DeviceQueue> queue,
    DeviceWeights weights,
    const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->queue = std::move(queue);
  impl->options = options;
  if (options.exact) impl->options.kv = kernels::KvDType::kF32;
  impl->weights = std::move(weights);
  ASSIGN_OR_RETURN(impl->m,
                   DeviceMemory::Create(impl->queue.get(),
                                        impl->weights,
                                        {.sizes = options.sizes,
                                         .rows_max = options.rows_max,
                                         .sequences_max = options.sequences_max,
                                         .exact = options.exact,
                                         .kv = impl->options.kv}));
  impl->next_position.resize(static_cast<size_t>(options.sizes.state_slots));
  ASSIGN_OR_RETURN(
      impl->arrays,
      DeviceStepArrays::Create(impl->queue.get(),
                               {.rows = options.rows_max,
                                .sequences = options.sequences_max,
                                .blocks = options.sizes.kv_blocks}));
  return std::unique_ptr<DeviceDecoder>(new DeviceDecoder(std::move(impl)));
}

absl::StatusOr<double> DeviceDecoder::Time(const StepBatch& batch,
                                           std::span<const int32_t> tokens,
                                           uint32_t blocks,
                                           int32_t repeats) {
  Impl& d = *impl_;
  RETURN_IF_ERROR(
      CheckStep(d.weights.config, d.options.sizes, batch, tokens, {}));
  const auto sizes = DeviceStepArrays::RecordedSizesOf(batch);
  RETURN_IF_ERROR(d.arrays.Upload(
      d.queue.get(), sizes, batch, tokens, {}, d.options.sizes.kv_blocks));
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

DeviceDecoder::DeviceDecoder(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
DeviceDecoder::~DeviceDecoder() = default;

DeviceQueue* DeviceDecoder::queue() { return impl_->queue.get(); }
uint64_t DeviceDecoder::dense_bytes() const {
  return impl_->weights.dense_bytes;
}
uint64_t DeviceDecoder::expert_bytes() const {
  return impl_->weights.expert_bytes;
}

std::span<const float> DeviceDecoder::GdnState(int32_t layer,
                                               int32_t slot) const {
  const size_t size = impl_->m.recurrent_floats();
  impl_->state.resize(size);
  const float* from =
      impl_->m.gdn(static_cast<size_t>(layer)).recurrent + size * slot;
  if (!impl_->queue->Download(from, size * sizeof(float), impl_->state.data())
           .ok()) {
    return {};
  }
  return impl_->state;
}

// The ring's rows but the one that the next token overwrites, oldest first.
std::span<const float> DeviceDecoder::ConvState(int32_t layer,
                                                int32_t slot) const {
  const size_t size = impl_->m.conv_floats();
  std::vector<float> ring(size);
  const float* from =
      impl_->m.gdn(static_cast<size_t>(layer)).conv + size * slot;
  if (!impl_->queue->Download(from, size * sizeof(float), ring.data()).ok()) {
    return {};
  }
  const auto taps = static_cast<size_t>(impl_->m.gdn_shape().conv_kernel);
  const size_t channels = size / taps;
  impl_->state.clear();
  for (size_t i = 1; i < taps; ++i) {
    const size_t row =
        (static_cast<size_t>(impl_->next_position[slot]) + i) % taps;
    impl_->state.insert(impl_->state.end(),
                        ring.begin() + row * channels,
                        ring.begin() + (row + 1) * channels);
  }
  return impl_->state;
}

}  // namespace conclave::model
