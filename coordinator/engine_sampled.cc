// SPDX-License-Identifier: Apache-2.0
// Steps in which everybody decodes and the decoder chooses the tokens where
// the logits are.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/engine_impl.h"

namespace conclave {

using schedule::PlannedRows;
using schedule::StepPlan;

namespace {

// Whether nobody reads this request's logits.
bool NeedsTokensAlone(const GenerateRequest& request) {
  return !request.logprobs && !request.echo &&
         request.sampling.logit_bias.empty();
}

}  // namespace

bool Engine::Impl::CanSample(const StepPlan& plan) const {
  return step_sampler != nullptr &&
         std::all_of(plan.sequences.begin(),
                     plan.sequences.end(),
                     [this](const PlannedRows& p) {
                       return p.cells.empty() &&
                              NeedsTokensAlone(active.at(p.id)->request);
                     });
}

// Tells the sampler of tokens that it did not choose.
absl::Status Engine::Impl::CountTokens(ActiveRequest& r, int32_t slot) {
  if (r.counted == r.tokens.size()) return absl::OkStatus();
  const std::span<const int32_t> all(r.tokens);
  const auto prompt = static_cast<size_t>(r.prompt_tokens);
  const std::vector<int32_t> counts = sample::CountsOf(
      all.first(prompt), all.subspan(prompt), bounds.vocab_used);
  RETURN_IF_ERROR(step_sampler->SetCounts(slot, counts));
  r.counted = r.tokens.size();
  return absl::OkStatus();
}

absl::Status Engine::Impl::RunSampled(const StepPlan& plan,
                                      const StepRows& rows) {
  const absl::Time start = parts.clock->Now();
  std::vector<kernels::DeviceSampling> how;
  for (const PlannedRows& p : plan.sequences) {
    ActiveRequest& r = *active.at(p.id);
    if (sample::HasPenalty(r.request.sampling)) {
      RETURN_IF_ERROR(CountTokens(r, p.state->slot));
    }
    how.push_back(r.sampler->OnDevice(static_cast<int32_t>(r.tokens.size())));
    how.back().counts_row = p.state->slot;
  }
  std::vector<int32_t> next(how.size());
  RETURN_IF_ERROR(
      step_sampler->Run({.sequences = rows.sequences, .rows = plan.rows},
                        rows.tokens,
                        how,
                        next));
  Stepped(plan, start);
  for (size_t i = 0; i < next.size(); ++i) {
    const PlannedRows& p = plan.sequences[i];
    if (next[i] < 0) {
      FailNotFinite(p);
      continue;
    }
    ActiveRequest& r = *active.at(p.id);
    if (r.counted > 0) ++r.counted;
    TakeToken(r, next[i], {});
  }
  return absl::OkStatus();
}

}  // namespace conclave
