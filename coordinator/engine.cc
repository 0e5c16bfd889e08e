// SPDX-License-Identifier: Apache-2.0
#include "coordinator/engine.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/engine_impl.h"

namespace conclave {
namespace {

// MemAvailable of the machine, in bytes; 0 if unknown.
int64_t AvailableMemoryBytes() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  int64_t kilobytes = 0;
  std::string unit;
  while (file >> name >> kilobytes) {
    if (name == "MemAvailable:") return kilobytes * 1024;
    std::getline(file, unit);
  }
  return 0;
}

int32_t OrDefault(int32_t value, int32_t otherwise) {
  return value > 0 ? value : otherwise;
}

// KV blocks and state slots together: every sequence gets a slot, and the
// blocks that an eighth of the free memory holds, at least one full context.
model::StateSizes Plan(const v1::Limits& limits,
                       const checkpoint::ModelConfig& config,
                       int32_t max_sequences,
                       int32_t max_context) {
  const model::StateBytes bytes = model::StateBytesOf(config);
  const int64_t context_blocks =
      schedule::StateAllocator::BlocksFor(max_context);
  int64_t blocks = context_blocks * max_sequences;
  if (limits.kv_tokens() > 0) {
    blocks = (limits.kv_tokens() + limits::kKvBlockTokens - 1) /
             limits::kKvBlockTokens;
  } else if (bytes.per_kv_block > 0) {
    const int64_t fit = AvailableMemoryBytes() / 8 / bytes.per_kv_block;
    blocks = std::min(blocks, std::max(fit, context_blocks));
  }
  blocks = std::min<int64_t>(blocks, std::numeric_limits<int32_t>::max() / 2);
  return {.kv_blocks = static_cast<int32_t>(blocks),
          .state_slots = max_sequences};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineParts parts) {
  auto impl = std::make_unique<Impl>();
  const checkpoint::ModelConfig& config = parts.checkpoint->config();
  const v1::Limits& limits = parts.limits;
  const int32_t max_sequences =
      std::min(OrDefault(limits.max_sequences(), limits::kSequencesDefault),
               limits::kSequencesMax);
  const int32_t max_context =
      std::min(OrDefault(limits.max_context(), config.max_position_embeddings),
               config.max_position_embeddings);
  const int32_t step_tokens =
      std::clamp(OrDefault(limits.step_tokens(), limits::kStepTokensDefault),
                 limits::kGdnCellRows,
                 limits::kStepRowsMax - limits::kSequencesMax);
  const std::string& folder = parts.checkpoint->folder();
  ASSIGN_OR_RETURN(impl->tokenizer, text::Tokenizer::Load(folder));
  ASSIGN_OR_RETURN(impl->default_sampling, ReadGenerationConfig(folder));
  const model::StateSizes sizes =
      Plan(limits, config, max_sequences, max_context);
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
          .default_sampling = impl_->default_sampling};
}

absl::Status Engine::Health() const {
  return impl_->parts.ready == nullptr ? absl::OkStatus()
                                       : impl_->parts.ready();
}

}  // namespace conclave
