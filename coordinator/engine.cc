// SPDX-License-Identifier: Apache-2.0
#include "coordinator/engine.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

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

int32_t StepTokensOf(const v1::Limits& limits) {
  return std::clamp(OrDefault(limits.step_tokens(), limits::kStepTokensDefault),
                    limits::kGdnCellRows,
                    limits::kStepRowsMax - limits::kSequencesMax);
}

}  // namespace

CacheRoom HostCacheRoom(const checkpoint::ModelConfig& config) {
  constexpr uint64_t kShare = 8;
  return {.each = model::StateBytesOf(config),
          .bytes = MemoryNow().free_bytes / kShare};
}

model::StateSizes CachesFor(const v1::Limits& limits,
                            const checkpoint::ModelConfig& config,
                            const CacheRoom& room) {
  const int32_t max_sequences = SequencesOf(limits);
  const int64_t context_blocks =
      schedule::StateAllocator::BlocksFor(ContextOf(limits, config));
  int64_t blocks = context_blocks * max_sequences;
  if (limits.kv_tokens() > 0) {
    blocks = (limits.kv_tokens() + limits::kKvBlockTokens - 1) /
             limits::kKvBlockTokens;
  } else if (room.each.per_kv_block > 0) {
    const int64_t fit =
        static_cast<int64_t>(room.bytes) / room.each.per_kv_block;
    blocks = std::min(blocks, std::max(fit, context_blocks));
  }
  blocks = std::min<int64_t>(blocks, std::numeric_limits<int32_t>::max() / 2);
  return {.kv_blocks = static_cast<int32_t>(blocks),
          .state_slots = max_sequences,
          .step_rows = StepTokensOf(limits) + max_sequences};
}

model::StateSizes CachesFor(const v1::Limits& limits,
                            const checkpoint::ModelConfig& config) {
  return CachesFor(limits, config, HostCacheRoom(config));
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineParts parts) {
  auto impl = std::make_unique<Impl>();
  const checkpoint::ModelConfig& config = parts.checkpoint->config();
  const v1::Limits& limits = parts.limits;
  const int32_t max_sequences = SequencesOf(limits);
  const std::string& folder = parts.checkpoint->folder();
  ASSIGN_OR_RETURN(impl->tokenizer, text::Tokenizer::Load(folder));
  ASSIGN_OR_RETURN(impl->default_sampling, ReadGenerationConfig(folder));
  impl->bounds = {
      .max_context = ContextOf(limits, config),
      .vocab_used = std::min(config.vocab_size, impl->tokenizer->size())};
  ASSIGN_OR_RETURN(impl->step_sampler,
                   parts.decoder->MakeSampler(impl->bounds.vocab_used));
  const model::StateSizes& sizes = parts.caches;
  impl->scheduler = std::make_unique<schedule::Scheduler>(
      schedule::Scheduler::Options{.max_sequences = max_sequences,
                                   .step_tokens = StepTokensOf(limits),
                                   .kv_blocks = sizes.kv_blocks,
                                   .state_slots = sizes.state_slots});
  impl->max_queue = OrDefault(limits.max_queue(), limits::kQueueDefault);
  impl->max_outstanding = max_sequences + impl->max_queue;
  impl->metrics = std::make_unique<EngineMetrics>(parts.metrics);
  impl->metrics->kv_blocks_total.Set(sizes.kv_blocks);
  const model::StateBytes each = parts.decoder->state_bytes();
  impl->resident.dense_bytes = parts.decoder->dense_bytes();
  impl->resident.expert_bytes = parts.decoder->expert_bytes();
  impl->resident.kv_bytes =
      static_cast<uint64_t>(sizes.kv_blocks * each.per_kv_block);
  impl->resident.state_bytes =
      static_cast<uint64_t>(sizes.state_slots * each.per_state_slot);
  ShowResident(parts.metrics, "dense", impl->resident.dense_bytes);
  ShowResident(parts.metrics, "kv", impl->resident.kv_bytes);
  ShowResident(parts.metrics, "state", impl->resident.state_bytes);
  if (impl->resident.expert_bytes > 0) {
    ShowResident(parts.metrics, "experts", impl->resident.expert_bytes);
  }
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
          .expert_bytes = impl_->resident.expert_bytes,
          .kv_bytes = impl_->resident.kv_bytes,
          .state_bytes = impl_->resident.state_bytes,
          .default_sampling = impl_->default_sampling};
}

absl::Status Engine::Health() const {
  RETURN_IF_ERROR(Lost());
  return impl_->parts.ready == nullptr ? absl::OkStatus()
                                       : impl_->parts.ready();
}

absl::Status Engine::Lost() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->lost;
}

}  // namespace conclave
