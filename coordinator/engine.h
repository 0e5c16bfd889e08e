// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/model/decoder.h"
#include "coordinator/schedule/request.h"

namespace conclave {

// Called by the engine thread, in order, last event exactly once. Must not
// block. Called for requests that Submit accepted only.
using TokenSink = std::function<void(const TokenEvent& event)>;

// What the engine needs; the caller keeps everything alive.
struct EngineParts {
  const checkpoint::Checkpoint* checkpoint = nullptr;
  std::unique_ptr<model::Decoder> decoder;  // over caches of these sizes
  model::StateSizes caches;
  Clock* clock = nullptr;
  Metrics* metrics = nullptr;
  v1::Limits limits;
  bool soft_switches = true;
  // OK, or why no step can run now ("worker w1 ... is not connected"): then
  // Submit refuses with that status. May be null.
  std::function<absl::Status()> ready;
};

// What caches cost and what they may take.
struct CacheRoom {
  model::StateBytes each;
  uint64_t bytes = 0;
};
// In host memory: an eighth of what is free now.
CacheRoom HostCacheRoom(const checkpoint::ModelConfig& config);

// KV blocks and state slots together: every sequence gets a slot; blocks are
// limits.kv_tokens, else what the room holds, at least one full context and
// at most one for every sequence. Rows of a step are its budget and a row of
// each sequence.
model::StateSizes CachesFor(const v1::Limits& limits,
                            const checkpoint::ModelConfig& config,
                            const CacheRoom& room);
model::StateSizes CachesFor(const v1::Limits& limits,
                            const checkpoint::ModelConfig& config);

// The step loop: Admit, PlanStep, decoder, sample, emit, retire. One thread of
// its own. Submit and Cancel are thread-safe.
class Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineParts parts);
  // Ends running requests with Cancelled.
  ~Engine();

  // Renders, tokenises and queues. InvalidArgument: the field's name comes
  // first. ResourceExhausted: the queue is full (429). Unavailable: experts
  // are missing (503). Returns the number of prompt tokens.
  absl::StatusOr<int32_t> Submit(GenerateRequest request, TokenSink sink);

  // The client has gone: the sequence leaves before the next step, no further
  // event. Unknown ids are ignored.
  void Cancel(RequestId id);

  // A new id for a request.
  RequestId NextId();

  struct Info {
    int32_t max_context = 0;
    int32_t running = 0;
    int32_t waiting = 0;
    // Resident; experts: those of the decoder's device.
    uint64_t dense_bytes = 0;
    uint64_t expert_bytes = 0;
    uint64_t kv_bytes = 0;
    uint64_t state_bytes = 0;
    // From the checkpoint's generation_config.json; defaults for requests.
    SamplingParams default_sampling;
  };
  Info info() const;

  // OK, or why no step can run (for /health).
  absl::Status Health() const;

  // OK, or why none can ever run again: the decoder's device is lost. All
  // requests have ended or end now; the process should, too.
  absl::Status Lost() const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave
