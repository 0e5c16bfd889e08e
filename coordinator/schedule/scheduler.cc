// SPDX-License-Identifier: Apache-2.0
#include "coordinator/schedule/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/limits.h"

namespace conclave::schedule {

std::vector<int32_t> CellEnds(int32_t prompt_tokens,
                              std::span<const int32_t> turn_borders) {
  std::vector<int32_t> out;
  int32_t at = 0;
  const auto fill_to = [&](int32_t border) {
    while (at < border) {
      const int32_t next =
          (at / limits::kGdnCellRows + 1) * limits::kGdnCellRows;
      at = std::min(next, border);
      out.push_back(at);
    }
  };
  for (const int32_t border : turn_borders) {
    fill_to(std::min(border, prompt_tokens));
  }
  fill_to(prompt_tokens);
  return out;
}

std::string ToString(const StepPlan& plan) {
  std::string out = absl::StrCat(plan.rows, " rows:");
  for (const PlannedRows& p : plan.sequences) {
    absl::StrAppend(&out,
                    " ",
                    static_cast<uint64_t>(p.id),
                    "@",
                    p.position,
                    "+",
                    p.rows,
                    p.cells.empty() ? "" : " prefill");
  }
  return out;
}

Scheduler::Scheduler(const Options& options)
    : options_(options), states_(options.kv_blocks, options.state_slots) {
  CONCLAVE_CHECK_GE(options.max_sequences, 1);
  CONCLAVE_CHECK_GE(options.step_tokens, limits::kGdnCellRows);
}

bool Scheduler::CanEverFit(const SequenceSpec& spec) const {
  return StateAllocator::BlocksFor(int64_t{spec.prompt_tokens} +
                                   spec.max_tokens) <= states_.blocks_total();
}

void Scheduler::Add(SequenceSpec spec) {
  CONCLAVE_CHECK_GE(spec.prompt_tokens, 1);
  CONCLAVE_CHECK(!spec.cell_ends.empty() &&
                 spec.cell_ends.back() == spec.prompt_tokens);
  CONCLAVE_CHECK(CanEverFit(spec));
  waiting_.push_back(std::move(spec));
}

void Scheduler::Remove(RequestId id) {
  std::erase_if(waiting_, [id](const auto& s) { return s.id == id; });
  const auto it = std::find_if(running_.begin(),
                               running_.end(),
                               [id](const auto& r) { return r.spec.id == id; });
  if (it == running_.end()) return;
  states_.Release(it->state);
  running_.erase(it);
}

std::vector<RequestId> Scheduler::WaitingIds() const {
  std::vector<RequestId> out;
  for (const SequenceSpec& spec : waiting_) out.push_back(spec.id);
  return out;
}

// In order: a large request that does not fit yet is not overtaken for ever.
void Scheduler::Admit() {
  while (!waiting_.empty() && running() < options_.max_sequences) {
    const SequenceSpec& spec = waiting_.front();
    auto state = states_.Reserve(int64_t{spec.prompt_tokens} + spec.max_tokens);
    if (!state) return;
    running_.push_back({.spec = std::move(waiting_.front()),
                        .state = *std::move(state),
                        .computed = 0});
    waiting_.pop_front();
  }
}

// As many whole cells as the budget has left.
void Scheduler::PlanPrefill(const Running& r, int32_t* left, StepPlan* plan) {
  PlannedRows rows{.id = r.spec.id,
                   .row_begin = plan->rows,
                   .position = r.computed,
                   .cells = {},
                   .all_logits = r.spec.all_logits,
                   .fresh = r.computed == 0,
                   .state = &r.state};
  for (const int32_t end : r.spec.cell_ends) {
    const int32_t length = end - r.computed;
    if (length <= 0) continue;
    // Logits of all rows are large: one cell at a time.
    if (length > *left || (r.spec.all_logits && !rows.cells.empty())) break;
    rows.cells.push_back(length);
    rows.rows = length;
  }
  if (rows.rows == 0) return;
  rows.ends_prompt = r.computed + rows.rows == r.spec.prompt_tokens;
  *left -= rows.rows;
  plan->rows += rows.rows;
  plan->sequences.push_back(std::move(rows));
}

StepPlan Scheduler::PlanStep() {
  Admit();
  StepPlan plan;
  for (const Running& r : running_) {
    if (r.computed < r.spec.prompt_tokens) continue;
    plan.sequences.push_back({.id = r.spec.id,
                              .row_begin = plan.rows,
                              .rows = 1,
                              .position = r.computed,
                              .cells = {},
                              .state = &r.state});
    ++plan.rows;
  }
  int32_t left =
      std::max(options_.step_tokens - plan.rows, limits::kGdnCellRows);
  for (const Running& r : running_) {
    if (r.computed < r.spec.prompt_tokens) PlanPrefill(r, &left, &plan);
  }
  return plan;
}

void Scheduler::Advance(const StepPlan& plan) {
  for (const PlannedRows& p : plan.sequences) {
    for (Running& r : running_) {
      if (r.spec.id == p.id) r.computed = p.position + p.rows;
    }
  }
}

}  // namespace conclave::schedule
