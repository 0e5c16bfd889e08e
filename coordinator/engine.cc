// SPDX-License-Identifier: Apache-2.0
#include "coordinator/engine.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/memory.h"
#include "common/status_macros.h"
#include "coordinator/engine_impl.h"

namespace conclave {
namespace {

int32_t OrDefault(int32_t value, int32_t otherwise) {
  return value > 0 ? value : otherwise;
}

int32_t SequencesOf(const v1::Limits& limits) {
  return std::min(OrDefault(limits.max_sequences(), limits::kSequencesDefault),
                  limits::kSequencesMax);
}

int32_t ContextOf(const v1::Limits& limits,
                  const checkpoint::ModelConfig& config) {
  return std::min(
      OrDefault(limits.max_context(), config.max_position_embeddings),
      config.max_position_embeddings);
}

}  // namespace

model::StateSizes CachesFor(const v1::Limits& limits,
                            const checkpoint::ModelConfig& config) {
  const int32_t max_sequences = SequencesOf(limits);
  const int32_t max_context = ContextOf(limits, config);
  const model::StateBytes bytes = model::StateBytesOf(config);
  const int64_t context_blocks =
      schedule::StateAllocator::BlocksFor(max_context);
  int64_t blocks = context_blocks * max_sequences;
  if (limits.kv_tokens() > 0) {
    blocks = (limits.kv_tokens() + limits::kKvBlockTokens - 1) /
             limits::kKvBlockTokens;
  } else if (bytes.per_kv_block > 0) {
    const auto free = static_cast<int64_t>(MemoryNow().free_bytes);
    const int64_t fit = free / 8 / bytes.per_kv_block;
    blocks = std::min(blocks, std::max(fit, context_blocks));
  }
  blocks = std::min<int64_t>(blocks, std::numeric_limits<int32_t>::max() / 2);
  return {.kv_blocks = static_cast<int32_t>(blocks),
          .state_slots = max_sequences};
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineParts parts) {
  auto impl = std::make_unique<Impl>();
  const checkpoint::ModelConfig& config = parts.checkpoint->config();
  const v1::Limits& limits = parts.limits;
  const int32_t max_sequences = SequencesOf(limits);
  const int32_t max_context = ContextOf(limits, config);
  const int32_t step_tokens =
      std::clamp(OrDefault(limits.step_tokens(), limits::kStepTokensDefault),
                 limits::kGdnCellRows,
                 limits::kStepRowsMax - limits::kSequencesMax);
  const std::string& folder = parts.checkpoint->folder();
  ASSIGN_OR_RETURN(impl->tokenizer, text::Tokenizer::Load(folder));
  ASSIGN_OR_RETURN(impl->default_sampling, ReadGenerationConfig(folder));
  const model::StateSizes sizes =
      parts.caches.has_value() ? *parts.caches : CachesFor(limits, config);
  ASSIGN_OR_RETURN(impl->decoder,
                   model::Decoder::Create(*parts.checkpoint,
                                          parts.experts,
                                          parts.backend,
                                          parts.pool,
                                          sizes,
                                          parts.activations));
  impl->scheduler = std::make_unique<schedule::Scheduler>(
      schedule::Scheduler::Options{.max_sequences = max_sequences,
                                   .step_tokens = step_tokens,
                                   .kv_blocks = sizes.kv_blocks,
                                   .state_slots = sizes.state_slots});
  impl->bounds = {
      .max_context = max_context,
      .vocab_used = std::min(config.vocab_size, impl->tokenizer->size())};
  impl->max_queue = OrDefault(limits.max_queue(), limits::kQueueDefault);
  impl->max_outstanding = max_sequences + impl->max_queue;
  impl->metrics = std::make_unique<EngineMetrics>(parts.metrics);
  impl->metrics->kv_blocks_total.Set(sizes.kv_blocks);
  const model::StateBytes each = model::StateBytesOf(config);
  impl->resident.dense_bytes = impl->decoder->dense_bytes();
  impl->resident.kv_bytes =
      static_cast<uint64_t>(sizes.kv_blocks * each.per_kv_block);
  impl->resident.state_bytes =
      static_cast<uint64_t>(sizes.state_slots * each.per_state_slot);
  ShowResident(parts.metrics, "dense", impl->resident.dense_bytes);
  ShowResident(parts.metrics, "kv", impl->resident.kv_bytes);
  ShowResident(parts.metrics, "state", impl->resident.state_bytes);
  impl->parts = std::move(parts);
  Impl* raw = impl.get();
  std::unique_ptr<Engine> engine(new Engine(std::move(impl)));
  raw->thread = std::thread([raw] { raw->Loop(); });
  return engine;
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() {
  {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stop = true;
    impl_->arrival.notify_one();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
}

absl::StatusOr<int32_t> Engine::Submit(GenerateRequest request,
                                       TokenSink sink) {
  return impl_->Submit(std::move(request), std::move(sink));
}

void Engine::Cancel(RequestId id) { impl_->Cancel(id); }

RequestId Engine::NextId() { return RequestId{impl_->next_id++}; }

Engine::Info Engine::info() const {
  return {.max_context = impl_->bounds.max_context,
          .running = impl_->running.load(),
          .waiting = impl_->waiting.load(),
          .dense_bytes = impl_->resident.dense_bytes,
          .kv_bytes = impl_->resident.kv_bytes,
          .state_bytes = impl_->resident.state_bytes,
          .default_sampling = impl_->default_sampling};
}

absl::Status Engine::Health() const {
  return impl_->parts.ready == nullptr ? absl::OkStatus()
                                       : impl_->parts.ready();
}

}  // namespace conclave
