// SPDX-License-Identifier: Apache-2.0
// The step loop (docs/contracts/step.md): take the inbox, plan, run, emit,
// retire.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "coordinator/engine_impl.h"

namespace conclave {

using schedule::PlannedRows;
using schedule::StepPlan;

void Engine::Impl::Loop() {
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex);
      // Work, or something to take in.
      arrival.wait(lock, [this] {
        return stop || !inbox.empty() || !cancelled.empty() || !active.empty();
      });
      if (stop) break;
    }
    TakeInbox();
    RefuseWaiting();
    EndLate();
    const StepPlan plan = scheduler->PlanStep();
    UpdateGauges();
    if (plan.rows == 0) continue;
    const absl::Status status = RunStep(plan);
    if (!status.ok()) EndStep(plan, status);
    UpdateGauges();  // what ended is not shown as running while nothing comes
  }
  TakeInbox();
  EndAll(absl::CancelledError("the server is stopping"));
}

void Engine::Impl::EndAll(const absl::Status& status) {
  while (!active.empty()) Fail(active.begin()->first, status);
}

// What a failed step leaves: its requests end. Without a device all do, also
// those that nobody has taken in yet.
void Engine::Impl::EndStep(const StepPlan& plan, const absl::Status& status) {
  // Requests were checked when they came: the client is not to blame.
  const bool ours = absl::IsInvalidArgument(status) ||
                    absl::IsOutOfRange(status) ||
                    absl::IsResourceExhausted(status);
  const absl::Status told =
      ours ? absl::InternalError(absl::StrCat("step: ", status.message()))
           : status;
  for (const PlannedRows& rows : plan.sequences) Fail(rows.id, told);
  const absl::Status health = parts.decoder->Health();
  if (health.ok()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    lost = health;  // from here on Submit refuses
  }
  TakeInbox();
  EndAll(health);
}

void Engine::Impl::TakeInbox() {
  std::vector<std::unique_ptr<ActiveRequest>> arrived;
  std::vector<RequestId> gone;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    arrived.swap(inbox);
    gone.swap(cancelled);
  }
  for (auto& request : arrived) {
    const RequestId id = request->request.id;
    CONCLAVE_CHECK(!active.contains(id));
    scheduler->Add(request->spec);
    active[id] = std::move(request);
  }
  for (const RequestId id : gone) {
    if (active.contains(id)) Retire(id, "cancelled");
  }
}

// Without experts nothing can begin: those that wait are told so.
void Engine::Impl::RefuseWaiting() {
  if (parts.ready == nullptr || scheduler->waiting() == 0) return;
  const absl::Status status = parts.ready();
  if (status.ok()) return;
  for (const RequestId id : scheduler->WaitingIds()) Fail(id, status);
}

void Engine::Impl::EndLate() {
  std::vector<RequestId> late;
  for (const auto& [id, r] : active) {
    if (r->request.deadline && *r->request.deadline <= parts.clock->Now()) {
      late.push_back(id);
    }
  }
  for (const RequestId id : late) {
    Fail(id, absl::DeadlineExceededError("the request took too long"));
  }
}

absl::Status Engine::Impl::RunStep(const StepPlan& plan) {
  StepRows rows;
  for (const PlannedRows& p : plan.sequences) {
    const std::vector<int32_t>& all = active.at(p.id)->tokens;
    rows.tokens.insert(rows.tokens.end(),
                       all.begin() + p.position,
                       all.begin() + p.position + p.rows);
    const int32_t* slot = &p.state->slot;
    rows.sequences.push_back({.row_begin = p.row_begin,
                              .rows = p.rows,
                              .position = p.position,
                              .cells = p.cells,
                              .state_slot_in = p.fresh ? -1 : *slot,
                              .state_slots_out = {slot, 1},
                              .kv_blocks = p.state->blocks});
    int32_t first = p.rows;  // no logits in the middle of a prompt
    if (p.cells.empty() || p.ends_prompt) first = p.rows - 1;
    if (p.all_logits && !p.cells.empty()) first = 0;
    for (int32_t r = first; r < p.rows; ++r) {
      rows.logit_rows.push_back(p.row_begin + r);
    }
  }
  return CanSample(plan) ? RunSampled(plan, rows) : RunForLogits(plan, rows);
}

void Engine::Impl::Stepped(const StepPlan& plan, absl::Time start) {
  scheduler->Advance(plan);
  metrics->steps.Add();
  metrics->step_seconds.Observe(
      absl::ToDoubleSeconds(parts.clock->Now() - start));
}

absl::Status Engine::Impl::RunForLogits(const StepPlan& plan,
                                        const StepRows& rows) {
  const absl::Time start = parts.clock->Now();
  ASSIGN_OR_RETURN(
      const model::StepOutput output,
      parts.decoder->Run({.sequences = rows.sequences, .rows = plan.rows},
                         rows.tokens,
                         rows.logit_rows,
                         nullptr));
  Stepped(plan, start);
  const auto vocab = static_cast<size_t>(parts.checkpoint->config().vocab_size);
  size_t at = 0;
  for (const PlannedRows& p : plan.sequences) {
    size_t count = 0;
    while (at + count < rows.logit_rows.size() &&
           rows.logit_rows[at + count] < p.row_begin + p.rows) {
      ++count;
    }
    if (!p.cells.empty()) metrics->prompt_tokens.Add(p.rows);
    Emit(p, output.logits.subspan(at * vocab, count * vocab));
    at += count;
  }
  return absl::OkStatus();
}

void Engine::Impl::FailNotFinite(const PlannedRows& rows) {
  Fail(rows.id,
       absl::InternalError(absl::StrCat(
           "logits: not finite in the step from position ", rows.position)));
}

// `logits`: of the rows of this sequence that asked for them.
void Engine::Impl::Emit(const PlannedRows& rows,
                        std::span<const float> logits) {
  ActiveRequest& r = *active.at(rows.id);
  // Weights or partial sums that are no numbers must not become words.
  if (!std::all_of(logits.begin(), logits.end(), [](float x) {
        return std::isfinite(x);
      })) {
    FailNotFinite(rows);
    return;
  }
  if (rows.all_logits && !rows.cells.empty()) ScorePrompt(r, rows, logits);
  const bool decode = rows.cells.empty();
  if (!decode && !rows.ends_prompt) return;
  if (rows.ends_prompt && r.request.echo) {
    TokenEvent event;
    r.stream->Echo({r.tokens.data(), static_cast<size_t>(r.prompt_tokens)},
                   event);
    event.logprobs = std::move(r.prompt_logprobs);
    event.prompt_tokens = r.prompt_tokens;
    if (r.max_tokens == 0) event.finish = FinishReason::kLength;
    r.sink(event);
  }
  if (r.max_tokens == 0) {
    Retire(rows.id, "length");
    return;
  }
  const auto vocab = static_cast<size_t>(parts.checkpoint->config().vocab_size);
  const std::span<const float> last = logits.last(vocab);
  const auto position = static_cast<int32_t>(r.tokens.size());
  TakeToken(r, r.sampler->Sample(last, position), last);
}

// Log-probabilities of prompt tokens: the row at position p tells of p + 1.
void Engine::Impl::ScorePrompt(ActiveRequest& r,
                               const PlannedRows& rows,
                               std::span<const float> logits) {
  const auto vocab = static_cast<size_t>(parts.checkpoint->config().vocab_size);
  int32_t offset = 0;
  const auto add = [&](int32_t position, const sample::Logprobs* values) {
    TokenLogprob out = r.stream->Describe(r.tokens[position]);
    if (!r.prompt_logprobs.empty()) {
      const TokenLogprob& before = r.prompt_logprobs.back();
      offset = before.text_offset +
               static_cast<int32_t>(std::count_if(
                   before.bytes.begin(), before.bytes.end(), [](char c) {
                     return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
                   }));
    }
    out.text_offset = offset;
    if (values != nullptr) {
      out.logprob = values->chosen;
      for (const sample::Logprob& top : values->top) {
        out.top.emplace_back(top.id, top.value);
        out.top_bytes.emplace_back(tokenizer->Bytes(top.id));
      }
    }
    r.prompt_logprobs.push_back(std::move(out));
  };
  if (rows.position == 0) add(0, nullptr);
  for (int32_t i = 0; i < rows.rows; ++i) {
    const int32_t next = rows.position + i + 1;
    if (next >= r.prompt_tokens) break;
    const sample::Logprobs values =
        sample::LogprobsOf(logits.subspan(i * vocab, vocab),
                           r.tokens[next],
                           r.request.top_logprobs);
    add(next, &values);
  }
}

bool Engine::Impl::IsEos(int32_t token) const {
  const auto& ids = parts.checkpoint->config().eos_token_ids;
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

// The next token of a reply. `logits` are read for log-probabilities alone.
void Engine::Impl::TakeToken(ActiveRequest& r,
                             int32_t token,
                             std::span<const float> logits) {
  if (r.generated() == 0) {
    metrics->first_token_seconds.Observe(
        absl::ToDoubleSeconds(parts.clock->Now() - r.submitted));
  }
  metrics->generated_tokens.Add();
  r.sampler->Accept(token);
  r.tokens.push_back(token);
  TokenEvent event;
  const bool eos = IsEos(token) && !r.request.ignore_eos;
  if (r.request.logprobs && !eos) {
    const sample::Logprobs values =
        sample::LogprobsOf(logits, token, r.request.top_logprobs);
    TokenLogprob out = r.stream->Describe(token);
    out.logprob = values.chosen;
    for (const sample::Logprob& top : values.top) {
      out.top.emplace_back(top.id, top.value);
      out.top_bytes.emplace_back(tokenizer->Bytes(top.id));
    }
    event.logprobs.push_back(std::move(out));
  }
  const bool stopped = eos || r.stream->Push(token, event);
  const bool ended = stopped || r.generated() >= r.max_tokens;
  if (ended) r.stream->Finish(stopped, event);
  event.prompt_tokens = r.prompt_tokens;
  event.completion_tokens = r.generated();
  event.reasoning_tokens = r.stream->reasoning_tokens();
  const RequestId id = r.request.id;
  r.sink(event);
  if (!ended) return;
  switch (event.finish) {
    case FinishReason::kToolCalls:
      Retire(id, "tool_calls");
      break;
    case FinishReason::kStop:
      Retire(id, "stop");
      break;
    default:
      Retire(id, "length");
  }
}

void Engine::Impl::Fail(RequestId id, const absl::Status& status) {
  const auto it = active.find(id);
  if (it == active.end()) return;
  TokenEvent event;
  event.error = status;
  event.prompt_tokens = it->second->prompt_tokens;
  event.completion_tokens = it->second->generated();
  it->second->sink(event);
  Retire(id, "error");
}

void Engine::Impl::Retire(RequestId id, const char* outcome) {
  scheduler->Remove(id);
  active.erase(id);
  metrics->Ended(outcome);
  const std::lock_guard<std::mutex> lock(mutex);
  --outstanding;
}

void Engine::Impl::UpdateGauges() {
  running = scheduler->running();
  waiting = scheduler->waiting();
  metrics->running.Set(scheduler->running());
  metrics->waiting.Set(scheduler->waiting());
  const schedule::StateAllocator& states = scheduler->states();
  metrics->kv_blocks_used.Set(states.blocks_total() - states.blocks_free());
}

}  // namespace conclave
