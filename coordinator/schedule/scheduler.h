// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "common/ids.h"
#include "coordinator/schedule/state_allocator.h"

namespace conclave::schedule {

// What the scheduler knows of a request; tokens and text stay in the engine.
struct SequenceSpec {
  RequestId id{};
  int32_t prompt_tokens = 0;  // >= 1
  int32_t max_tokens = 0;     // new ones; 0: the prompt is only scored
  bool all_logits = false;    // of every prompt row (echo with logprobs)
  // Ends of the prompt's cells, ascending positions, the last is
  // prompt_tokens; see CellEnds.
  std::vector<int32_t> cell_ends;
};

// The grid of chunked GDN over a prompt: multiples of 64 positions, counted
// from the prompt's start, and the turn borders. It depends on the prompt
// alone.
std::vector<int32_t> CellEnds(int32_t prompt_tokens,
                              std::span<const int32_t> turn_borders);

// The rows of one sequence in one step.
struct PlannedRows {
  RequestId id{};
  int32_t row_begin = 0;
  int32_t rows = 0;
  int32_t position = 0;        // of the first row
  std::vector<int32_t> cells;  // relative to row_begin; empty: decode
  bool ends_prompt = false;    // its last row gives the first new token
  bool all_logits = false;
  bool fresh = false;  // no state before its first row
  const Reservation* state = nullptr;
};

struct StepPlan {
  std::vector<PlannedRows> sequences;  // decodes first, then prefill pieces
  int32_t rows = 0;
};
std::string ToString(const StepPlan& plan);

// Continuous batching: sequences join and leave between steps. First come,
// first served: decodes go on in every step, prompts are cut into pieces that
// share what the budget leaves (at least one cell). Pure: no I/O, no clock.
class Scheduler {
 public:
  struct Options {
    int32_t max_sequences = 16;
    int32_t step_tokens = 512;
    int32_t kv_blocks = 0;
    int32_t state_slots = 0;
  };
  explicit Scheduler(const Options& options);

  // True if the sequence could run alone.
  bool CanEverFit(const SequenceSpec& spec) const;
  // Queues; the id is new.
  void Add(SequenceSpec spec);
  // Frees everything that it owns. Unknown ids are ignored.
  void Remove(RequestId id);

  // Admits what fits and plans the next step; nothing to do: rows == 0. The
  // plan's pointers live until the next call of Remove or Advance.
  StepPlan PlanStep();
  // The planned step has been computed.
  void Advance(const StepPlan& plan);

  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }
  std::vector<RequestId> WaitingIds() const;
  const StateAllocator& states() const { return states_; }

 private:
  struct Running {
    SequenceSpec spec;
    Reservation state;
    int32_t computed = 0;  // positions whose state exists
  };
  void Admit();
  void PlanPrefill(const Running& sequence, int32_t* left, StepPlan* plan);

  const Options options_;
  StateAllocator states_;
  std::deque<SequenceSpec> waiting_;
  std::deque<Running> running_;  // in the order of admission
};

}  // namespace conclave::schedule
