// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/engine.h"
#include "coordinator/engine_metrics.h"
#include "coordinator/generation_config.h"
#include "coordinator/model/decoder.h"
#include "coordinator/reply_stream.h"
#include "coordinator/sample/sampler.h"
#include "coordinator/schedule/scheduler.h"
#include "coordinator/text/tokenizer.h"

namespace conclave {

// One accepted request. Made by Submit, then owned by the engine thread.
struct ActiveRequest {
  GenerateRequest request;
  TokenSink sink;
  std::vector<int32_t> tokens;  // prompt, then generated ones
  int32_t prompt_tokens = 0;
  int32_t max_tokens = 0;
  schedule::SequenceSpec spec;
  std::unique_ptr<sample::Sampler> sampler;
  std::unique_ptr<ReplyStream> stream;
  std::vector<TokenLogprob> prompt_logprobs;  // echo
  // Of `tokens`, those that the step sampler has counted; 0: none of them.
  size_t counted = 0;
  absl::Time submitted;

  int32_t generated() const {
    return static_cast<int32_t>(tokens.size()) - prompt_tokens;
  }
};

// A plan as the decoder takes it; views into the plan and into this.
struct StepRows {
  std::vector<kernels::SequenceRows> sequences;
  std::vector<int32_t> tokens;
  std::vector<int32_t> logit_rows;  // that somebody reads
};

// docs/contracts/step.md is normative for the loop.
struct Engine::Impl {
  // Any thread (engine_submit.cc).
  absl::StatusOr<int32_t> Submit(GenerateRequest request, TokenSink sink);
  absl::StatusOr<std::unique_ptr<ActiveRequest>> Prepare(
      GenerateRequest request, TokenSink sink) const;
  absl::StatusOr<std::vector<int32_t>> PromptIds(GenerateRequest& request,
                                                 bool* thinking) const;
  void Cancel(RequestId id);

  // Engine thread (engine_step.cc).
  void Loop();
  void TakeInbox();
  void RefuseWaiting();
  void EndLate();
  void EndStep(const schedule::StepPlan& plan, const absl::Status& status);
  void EndAll(const absl::Status& status);
  absl::Status RunStep(const schedule::StepPlan& plan);
  absl::Status RunForLogits(const schedule::StepPlan& plan,
                            const StepRows& rows);
  void Stepped(const schedule::StepPlan& plan, absl::Time start);
  void Emit(const schedule::PlannedRows& rows, std::span<const float> logits);
  void ScorePrompt(ActiveRequest& r,
                   const schedule::PlannedRows& rows,
                   std::span<const float> logits);
  void TakeToken(ActiveRequest& r,
                 int32_t token,
                 std::span<const float> logits);
  void FailNotFinite(const schedule::PlannedRows& rows);

  // Engine thread (engine_sampled.cc): steps whose tokens the decoder chooses.
  bool CanSample(const schedule::StepPlan& plan) const;
  absl::Status RunSampled(const schedule::StepPlan& plan, const StepRows& rows);
  absl::Status CountTokens(ActiveRequest& r, int32_t slot);
  bool IsEos(int32_t token) const;
  void Fail(RequestId id, const absl::Status& status);
  void Retire(RequestId id, const char* outcome);
  void UpdateGauges();

  EngineParts parts;
  std::unique_ptr<text::Tokenizer> tokenizer;
  std::unique_ptr<model::StepSampler> step_sampler;  // null: tokens come from
                                                     // logits; parts' decoder
  std::unique_ptr<schedule::Scheduler> scheduler;
  std::unique_ptr<EngineMetrics> metrics;
  SamplingParams default_sampling;
  RequestBounds bounds;
  int32_t max_outstanding = 0;  // running and waiting
  int32_t max_queue = 0;
  Info resident;  // its bytes alone
  absl::flat_hash_map<RequestId, std::unique_ptr<ActiveRequest>> active;

  std::atomic<uint64_t> next_id{1};
  std::atomic<int32_t> running{0};
  std::atomic<int32_t> waiting{0};

  // Guards what follows. Not absl::Mutex: the thread sanitizer cannot see into
  // the distribution's library.
  std::mutex mutex;
  std::condition_variable arrival;
  std::vector<std::unique_ptr<ActiveRequest>> inbox;
  std::vector<RequestId> cancelled;
  int32_t outstanding = 0;
  bool stop = false;
  absl::Status lost;
  std::thread thread;
};

}  // namespace conclave
