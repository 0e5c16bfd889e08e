// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/device_sampler.h"

#include <algorithm>

#include "common/status_macros.h"
#include "coordinator/model/device_decoder_impl.h"

namespace conclave::model {
namespace {

using kernels::DeviceSampling;

bool HasPenalty(const DeviceSampling& how) {
  return how.presence_penalty != 0 || how.frequency_penalty != 0 ||
         how.repetition_penalty != 1;
}

}  // namespace

DeviceSampler::DeviceSampler(DeviceDecoder::Impl* decoder,
                             int32_t vocab_used,
                             std::shared_ptr<Counts> counts)
    : d_(*decoder), vocab_used_(vocab_used), counts_(std::move(counts)) {
  d_.samplers.insert(this);
}

DeviceSampler::~DeviceSampler() { d_.samplers.erase(this); }

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Create(
    DeviceDecoder::Impl* decoder, int32_t vocab_used) {
  if (vocab_used < 1 || vocab_used > decoder->weights.config.vocab_size) {
    return absl::InvalidArgumentError("sampler: no such vocabulary");
  }
  return Make(decoder, vocab_used, std::make_shared<Counts>());
}

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::CreateLane(
    DeviceDecoder::Impl* decoder, const DeviceSampler& first) {
  return Make(decoder, first.vocab_used_, first.counts_);
}

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Make(
    DeviceDecoder::Impl* decoder,
    int32_t vocab_used,
    std::shared_ptr<Counts> counts) {
  auto out = std::unique_ptr<DeviceSampler>(
      new DeviceSampler(decoder, vocab_used, std::move(counts)));
  ASSIGN_OR_RETURN(
      out->how_,
      decoder->queue->Allocate(
          static_cast<size_t>(decoder->m.wanted_max()) * sizeof(DeviceSampling),
          "sampling parameters"));
  return out;
}

absl::Status DeviceSampler::AllocateCounts() {
  std::lock_guard<std::mutex> lock(counts_->mutex);
  if (counts_->buffer.bytes() > 0) return absl::OkStatus();
  const auto rows = static_cast<size_t>(d_.options.sizes.state_slots) + 1;
  ASSIGN_OR_RETURN(kernels::DeviceBuffer buffer,
                   d_.queue->Allocate(rows * static_cast<size_t>(vocab_used_) *
                                          sizeof(int32_t),
                                      "counts of tokens for penalties"));
  RETURN_IF_ERROR(d_.queue->Fill(buffer, 0));
  // Before another lane's queue uses it.
  RETURN_IF_ERROR(d_.queue->Wait());
  counts_->buffer = std::move(buffer);
  return absl::OkStatus();
}

absl::Status DeviceSampler::SetCounts(int32_t slot,
                                      std::span<const int32_t> counts) {
  RETURN_IF_ERROR(d_.lost);
  if (slot < 0 || slot >= d_.options.sizes.state_slots ||
      counts.size() != static_cast<size_t>(vocab_used_)) {
    return absl::InvalidArgumentError(
        "sampler: no such slot, or not a count "
        "of every token");
  }
  RETURN_IF_ERROR(d_.Told(AllocateCounts()));
  int32_t* row = rows() + static_cast<int64_t>(slot) * vocab_used_;
  return d_.Told(d_.queue->Upload(counts.data(), counts.size_bytes(), row));
}

// `counted`: some row has a penalty.
absl::Status DeviceSampler::Pass(const Sizes& sizes, bool counted) {
  RETURN_IF_ERROR(d_.PassToLogits(sizes));
  const auto* how = how_.as<DeviceSampling>();
  int32_t* told = counted ? rows() : nullptr;
  RETURN_IF_ERROR(kernels::DeviceSample(d_.queue.get(),
                                        d_.m.logits(),
                                        sizes.rows,
                                        d_.weights.config.vocab_size,
                                        vocab_used_,
                                        how,
                                        told,
                                        d_.m.sampling_scratch(),
                                        d_.m.next()));
  if (!counted) return absl::OkStatus();
  return kernels::DeviceCount(
      d_.queue.get(), d_.m.next(), how, sizes.rows, vocab_used_, told);
}

absl::Status DeviceSampler::Launch(const Sizes& sizes, bool counted) {
  if (!d_.options.record) return Pass(sizes, counted);
  const kernels::DeviceGroup* group = d_.options.group;
  if (group != nullptr && recorded_in_ != group->generation()) {
    graphs_.clear();
    recorded_in_ = group->generation();
  }
  kernels::DeviceGraph& graph = graphs_[{sizes, counted}];
  if (!graph.recorded()) {
    RETURN_IF_ERROR(d_.queue->BeginRecording());
    const absl::Status status = Pass(sizes, counted);
    absl::StatusOr<kernels::DeviceGraph> recorded = d_.queue->EndRecording();
    RETURN_IF_ERROR(status);
    ASSIGN_OR_RETURN(graph, std::move(recorded));
  }
  return d_.queue->Launch(graph);
}

absl::Status DeviceSampler::RunStep(const kernels::StepBatch& batch,
                                    std::span<const int32_t> tokens,
                                    std::span<const DeviceSampling> how,
                                    std::span<int32_t> next) {
  RETURN_IF_ERROR(d_.CheckOneRowEach(batch, tokens));
  if (how.size() != tokens.size() || next.size() != tokens.size()) {
    return absl::InvalidArgumentError(
        "step: sampling and a next token per sequence");
  }
  const Sizes sizes = d_.SizesOf(batch);
  const int32_t slots = d_.options.sizes.state_slots;
  bool counted = false;
  host_.assign(static_cast<size_t>(sizes.rows), {.counts_row = slots});
  for (size_t i = 0; i < how.size(); ++i) {
    host_[i] = how[i];
    if (HasPenalty(how[i])) {
      counted = true;
    } else {
      host_[i].counts_row = slots;
    }
  }
  if (counted) RETURN_IF_ERROR(AllocateCounts());
  d_.NotePositions(batch);
  RETURN_IF_ERROR(
      d_.Upload(sizes, batch, tokens, {}, d_.options.sizes.kv_blocks, true));
  RETURN_IF_ERROR(d_.queue->Upload(
      host_.data(), host_.size() * sizeof(DeviceSampling), how_.as<void>()));
  RETURN_IF_ERROR(d_.BeginLinked(sizes.rows, d_.options.record));
  RETURN_IF_ERROR(Launch(sizes, counted));
  RETURN_IF_ERROR(d_.Joined());
  RETURN_IF_ERROR(
      d_.queue->Download(d_.m.next(), next.size_bytes(), next.data()));
  d_.micro_batches->End();
  return absl::OkStatus();
}

absl::Status DeviceSampler::Run(const kernels::StepBatch& batch,
                                std::span<const int32_t> tokens,
                                std::span<const DeviceSampling> how,
                                std::span<int32_t> next) {
  RETURN_IF_ERROR(d_.lost);
  return d_.Told(RunStep(batch, tokens, how, next));
}

}  // namespace conclave::model
