// SPDX-License-Identifier: Apache-2.0
// Steps of a device decoder: numbers up, a pass, logits down.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/device_decoder_impl.h"
#include "coordinator/model/device_sampler.h"
#include "coordinator/model/step_check.h"

namespace conclave::model {

using kernels::DeviceQueue;
using kernels::StepBatch;

namespace {

// Blocks of the longest sequence that the model knows positions for.
int32_t BlocksMax(const checkpoint::ModelConfig& config,
                  const StateSizes& sizes) {
  const int32_t longest =
      (config.max_position_embeddings + limits::kKvBlockTokens - 1) /
      limits::kKvBlockTokens;
  return std::min(sizes.kv_blocks, longest);
}

}  // namespace

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
  ReadChoices choices;
  RETURN_IF_ERROR(choices.Read(queue.get(), entries));
  probe->Routed(layer, choices.routing());
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::DownloadRows(int32_t row,
                                               int32_t rows,
                                               std::vector<float>* out) {
  const kernels::DeviceRows u = m.u(row);
  out->resize(static_cast<size_t>(rows) * weights.config.hidden_size);
  if (!u.bf16) {
    return queue->Download(u.data, out->size() * sizeof(float), out->data());
  }
  rounded.resize(out->size());
  RETURN_IF_ERROR(queue->Download(
      u.data, rounded.size() * sizeof(uint16_t), rounded.data()));
  std::transform(rounded.begin(), rounded.end(), out->begin(), FromBf16);
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::Upload(const Sizes& sizes,
                                         const StepBatch& batch,
                                         std::span<const int32_t> tokens,
                                         std::span<const int32_t> wanted,
                                         int32_t spare_block,
                                         bool may_cut) {
  RETURN_IF_ERROR(
      arrays.Upload(queue.get(), sizes, batch, tokens, wanted, spare_block));
  slices.clear();
  const int32_t count =
      micro_batches->Begin(batch, may_cut && !slice_arrays.empty());
  if (count == 1) {
    Slice& slice = slices.emplace_back();
    slice.step = arrays.At(sizes).step;
    slice.entries = m.EntriesOf(sizes.rows);
    return absl::OkStatus();
  }
  const MicroBatches cut(batch, tokens, count);
  for (const MicroBatch& part : cut.all()) {
    const Sizes own = DeviceStepArrays::SizesOf(part.batch, 0);
    DeviceStepArrays& numbers = slice_arrays[slices.size()];
    RETURN_IF_ERROR(numbers.Upload(
        queue.get(), own, part.batch, part.tokens, {}, spare_block));
    slices.push_back({.number = static_cast<int32_t>(slices.size()),
                      .row = part.row_begin,
                      .step = numbers.At(own).step,
                      .entries = m.EntriesOf(own.rows, part.row_begin),
                      .moe = {}});
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::CheckRoom(const StepBatch& batch) const {
  if (batch.rows > options.rows_max ||
      static_cast<int32_t>(batch.sequences.size()) > options.sequences_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("step: ",
                     batch.rows,
                     " rows of ",
                     batch.sequences.size(),
                     " sequences; the GPU has room for ",
                     options.rows_max,
                     " of ",
                     options.sequences_max));
  }
  const int64_t positions = int64_t{BlocksMax(weights.config, options.sizes)} *
                            limits::kKvBlockTokens;
  for (const kernels::SequenceRows& s : batch.sequences) {
    if (int64_t{s.position} + s.rows <= positions) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("step: position ", s.position, "; there are ", positions));
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::CheckOneRowEach(
    const StepBatch& batch, std::span<const int32_t> tokens) const {
  RETURN_IF_ERROR(CheckStep(weights.config, options.sizes, batch, tokens, {}));
  if (batch.rows != static_cast<int32_t>(batch.sequences.size())) {
    return absl::InvalidArgumentError("step: not one row of each sequence");
  }
  return CheckRoom(batch);
}

absl::Status DeviceDecoder::Impl::Told(const absl::Status& status) {
  // Out of memory and what was refused leave the device as it was; after
  // anything else CUDA answers every further call with the same error.
  if (status.ok() || absl::IsInvalidArgument(status)) return status;
  if (options.linked != nullptr && options.linked->in_step()) DropLinked();
  for (const RoutedElsewhere& others : elsewhere) {
    if (status == others.failure()) return status;
  }
  if (options.linked != nullptr && status == options.linked->failure()) {
    return status;
  }
  // Another rank was missed: this device is what it was.
  if (absl::IsDeadlineExceeded(status) || absl::IsAborted(status)) {
    return status;
  }
  const absl::Status named(absl::IsResourceExhausted(status)
                               ? absl::StatusCode::kUnavailable
                               : absl::StatusCode::kInternal,
                           absl::StrCat(options.name, ": ", status.message()));
  if (!absl::IsResourceExhausted(status) && lost.ok()) {
    lost = absl::UnavailableError(named.message());
  }
  return named;
}

absl::StatusOr<StepOutput> DeviceDecoder::Impl::Run(
    const StepBatch& batch,
    std::span<const int32_t> tokens,
    std::span<const int32_t> logit_rows,
    Probe* probe) {
  RETURN_IF_ERROR(
      CheckStep(weights.config, options.sizes, batch, tokens, logit_rows));
  RETURN_IF_ERROR(CheckRoom(batch));
  NotePositions(batch);
  const auto wanted = static_cast<int32_t>(logit_rows.size());
  auto sizes = DeviceStepArrays::SizesOf(batch, wanted);
  if (IsRecorded(batch, logit_rows, probe)) {
    RETURN_IF_ERROR(Recorded(batch, tokens, &sizes));
    RETURN_IF_ERROR(Joined());
    logits.resize(static_cast<size_t>(wanted) * weights.config.vocab_size);
    RETURN_IF_ERROR(queue->Download(
        m.logits(), logits.size() * sizeof(float), logits.data()));
  } else {
    RETURN_IF_ERROR(
        Upload(sizes, batch, tokens, logit_rows, 0, probe == nullptr));
    RETURN_IF_ERROR(BeginLinked(batch.rows, false));
    RETURN_IF_ERROR(Layers(probe));
    RETURN_IF_ERROR(Head(sizes));
  }
  RETURN_IF_ERROR(DownloadRows(0, batch.rows, &hidden));
  micro_batches->End();
  return StepOutput{.logits = logits, .hidden = hidden};
}

absl::StatusOr<StepOutput> DeviceDecoder::Run(
    const StepBatch& batch,
    std::span<const int32_t> tokens,
    std::span<const int32_t> logit_rows,
    Probe* probe) {
  RETURN_IF_ERROR(impl_->lost);
  absl::StatusOr<StepOutput> out = impl_->Run(batch, tokens, logit_rows, probe);
  if (out.ok()) return out;
  return impl_->Told(out.status());
}

void DeviceDecoder::Impl::NotePositions(const StepBatch& batch) {
  for (const kernels::SequenceRows& s : batch.sequences) {
    const size_t states = s.state_slots_out.size();
    for (size_t i = 0; i < states; ++i) {
      const int32_t row = states > 1 ? static_cast<int32_t>(i) : s.rows - 1;
      (*next_position)[s.state_slots_out[i]] = s.position + row + 1;
    }
  }
}

absl::Status DeviceDecoder::RunGreedy(const StepBatch& batch,
                                      std::span<const int32_t> tokens,
                                      std::span<int32_t> next) {
  Impl& d = *impl_;
  RETURN_IF_ERROR(d.CheckOneRowEach(batch, tokens));
  if (next.size() != batch.sequences.size()) {
    return absl::InvalidArgumentError("step: a next token per sequence");
  }
  d.NotePositions(batch);
  DeviceStepArrays::Sizes sizes;
  absl::Status status = d.Recorded(batch, tokens, &sizes);
  if (status.ok()) status = d.Joined();
  RETURN_IF_ERROR(d.Told(status));
  RETURN_IF_ERROR(
      d.queue->Download(d.m.next(), next.size_bytes(), next.data()));
  d.micro_batches->End();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StepSampler>> DeviceDecoder::MakeSampler(
    int32_t vocab_used) {
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceSampler> out,
                   DeviceSampler::Create(impl_.get(), vocab_used));
  return out;
}

absl::StatusOr<std::unique_ptr<StepSampler>> DeviceDecoder::MakeSampler(
    const StepSampler& first) {
  return DeviceSampler::CreateLane(impl_.get(),
                                   static_cast<const DeviceSampler&>(first));
}

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::Create(
    std::unique_ptr<DeviceQueue> queue,
    DeviceWeights weights,
    const Options& options) {
  auto impl = std::make_unique<Impl>(
      std::make_shared<const DeviceWeights>(std::move(weights)));
  impl->queue = std::move(queue);
  impl->options = options;
  impl->next_position = std::make_shared<std::vector<int32_t>>(
      static_cast<size_t>(options.sizes.state_slots));
  return Make(std::move(impl), nullptr);
}

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::CreateLane(
    std::unique_ptr<DeviceQueue> queue,
    const DeviceDecoder& first,
    const Options& options) {
  auto impl = std::make_unique<Impl>(first.impl_->held);
  impl->queue = std::move(queue);
  impl->options = options;
  impl->next_position = first.impl_->next_position;
  return Make(std::move(impl), first.impl_.get());
}

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::Make(
    std::unique_ptr<Impl> impl, const Impl* first) {
  Options& options = impl->options;
  if (options.exact) {
    options.kv = kernels::KvDType::kF32;
    options.gdn = kernels::GdnDType::kF32;
  }
  ASSIGN_OR_RETURN(impl->m,
                   DeviceMemory::Create(
                       impl->queue.get(),
                       impl->weights.config,
                       {.sizes = options.sizes,
                        .rows_max = options.rows_max,
                        .sequences_max = options.sequences_max,
                        .exact = options.exact,
                        .kv = options.kv,
                        .gdn = options.gdn,
                        .logit_cols = LogitColumns(
                            impl->weights.cut, impl->weights.config.vocab_size),
                        .samples = options.rank == 0,
                        .logit_bytes = options.logit_bytes,
                        .states_of = first == nullptr ? nullptr : &first->m}));
  if (options.group != nullptr && options.rank == 0) {
    options.group->GatherInto(impl->m.logits());
  }
  const DeviceStepArrays::Bounds bounds{
      .rows = options.rows_max,
      .sequences = options.sequences_max,
      .blocks = BlocksMax(impl->weights.config, options.sizes)};
  ASSIGN_OR_RETURN(impl->arrays,
                   DeviceStepArrays::Create(impl->queue.get(), bounds));
  impl->micro_batches.emplace(options.micro_batches);
  if (options.experts != nullptr) {
    options.record = false;
    RETURN_IF_ERROR(impl->LookElsewhere(bounds));
  }
  if (options.linked != nullptr) {
    RETURN_IF_ERROR(options.linked->Attach(impl->queue.get()));
  }
  return std::unique_ptr<DeviceDecoder>(new DeviceDecoder(std::move(impl)));
}

absl::Status DeviceDecoder::Impl::LookElsewhere(
    const DeviceStepArrays::Bounds& bounds) {
  const int32_t count =
      options.micro_batches.count == 1 ? 1 : limits::kMicroBatchesMax;
  for (int32_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(
        elsewhere.emplace_back(),
        RoutedElsewhere::Create(
            queue.get(), options.experts, weights.config, options.rows_max, i));
    if (count == 1) break;
    ASSIGN_OR_RETURN(slice_arrays.emplace_back(),
                     DeviceStepArrays::Create(queue.get(), bounds));
  }
  return absl::OkStatus();
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

StateBytes DeviceDecoder::state_bytes() const {
  return DeviceStateBytesOf(
      impl_->weights.config, impl_->options.kv, impl_->options.gdn);
}
absl::Status DeviceDecoder::Health() const { return impl_->lost; }

std::span<const float> DeviceDecoder::GdnState(int32_t layer,
                                               int32_t slot) const {
  const size_t size = impl_->m.recurrent_size();
  const kernels::DeviceGdnState state =
      impl_->m.gdn(static_cast<size_t>(layer));
  const auto download = [&](auto* to) {
    const auto* from = static_cast<decltype(to)>(state.recurrent);
    return impl_->queue->Download(from + size * slot, size * sizeof(*to), to);
  };
  impl_->state.resize(size);
  if (state.dtype == kernels::GdnDType::kF32) {
    if (!download(impl_->state.data()).ok()) return {};
    return impl_->state;
  }
  std::vector<uint16_t> rounded(size);
  if (!download(rounded.data()).ok()) return {};
  std::transform(
      rounded.begin(), rounded.end(), impl_->state.begin(), FromBf16);
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
        (static_cast<size_t>((*impl_->next_position)[slot]) + i) % taps;
    impl_->state.insert(impl_->state.end(),
                        ring.begin() + row * channels,
                        ring.begin() + (row + 1) * channels);
  }
  return impl_->state;
}

}  // namespace conclave::model
