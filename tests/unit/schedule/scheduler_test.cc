// SPDX-License-Identifier: Apache-2.0
#include "coordinator/schedule/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "common/limits.h"
#include "tests/testing/seeded.h"

namespace conclave::schedule {
namespace {

using testing::Seeded;

SequenceSpec Spec(uint64_t id,
                  int32_t prompt,
                  int32_t max_tokens,
                  const std::vector<int32_t>& borders = {}) {
  return {.id = RequestId{id},
          .prompt_tokens = prompt,
          .max_tokens = max_tokens,
          .cell_ends = CellEnds(prompt, borders)};
}

TEST(CellEnds, AreMultiplesOf64AndBorders) {
  EXPECT_EQ(CellEnds(1, {}), (std::vector<int32_t>{1}));
  EXPECT_EQ(CellEnds(64, {}), (std::vector<int32_t>{64}));
  EXPECT_EQ(CellEnds(130, {}), (std::vector<int32_t>{64, 128, 130}));
  EXPECT_EQ(CellEnds(200, std::vector<int32_t>{10, 64, 100, 200}),
            (std::vector<int32_t>{10, 64, 100, 128, 192, 200}));
}

// What went before does not depend on what comes behind it.
TEST(CellEnds, OfAPrefixAreAPrefix) {
  const std::vector<int32_t> borders = {30, 95, 128, 300};
  const std::vector<int32_t> whole = CellEnds(512, borders);
  for (const int32_t border : borders) {
    const std::vector<int32_t> part = CellEnds(border, borders);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin())) << border;
  }
}

TEST(Scheduler, DecodesGoFirstAndPromptsShareTheRest) {
  Scheduler scheduler({.max_sequences = 4,
                       .step_tokens = 128,
                       .kv_blocks = 100,
                       .state_slots = 4});
  scheduler.Add(Spec(1, 10, 5));
  StepPlan plan = scheduler.PlanStep();
  EXPECT_EQ(ToString(plan), "10 rows: 1@0+10 prefill");
  EXPECT_TRUE(plan.sequences[0].fresh);
  EXPECT_TRUE(plan.sequences[0].ends_prompt);
  scheduler.Advance(plan);
  scheduler.Add(Spec(2, 100, 5));
  scheduler.Add(Spec(3, 40, 5));
  plan = scheduler.PlanStep();
  // 127 rows are left: both cells of 2 (100), none of 3 (40 > 27).
  EXPECT_EQ(ToString(plan), "101 rows: 1@10+1 2@0+100 prefill");
  scheduler.Advance(plan);
  plan = scheduler.PlanStep();
  EXPECT_EQ(ToString(plan), "42 rows: 1@11+1 2@100+1 3@0+40 prefill");
}

TEST(Scheduler, NobodyOvertakesTheFirstThatWaits) {
  Scheduler scheduler({.max_sequences = 4,
                       .step_tokens = 512,
                       .kv_blocks = 4,
                       .state_slots = 4});
  EXPECT_FALSE(scheduler.CanEverFit(Spec(9, 256, 1)));
  scheduler.Add(Spec(1, 64, 64));
  scheduler.Add(Spec(2, 192, 64));
  scheduler.Add(Spec(3, 1, 1));
  scheduler.Advance(scheduler.PlanStep());
  EXPECT_EQ(scheduler.running(), 1);
  EXPECT_EQ(scheduler.WaitingIds(),
            (std::vector<RequestId>{RequestId{2}, RequestId{3}}));
  scheduler.Remove(RequestId{1});
  EXPECT_EQ(scheduler.PlanStep().sequences[0].id, RequestId{2});
}

// A world of random requests that runs until nothing is left.
struct World {
  World(uint32_t seed, int32_t budget)
      : random(seed),
        options{.max_sequences = 1 + random.Int(6),
                .step_tokens = budget,
                .kv_blocks = 8 + random.Int(30),
                .state_slots = 0},
        scheduler([this] {
          options.state_slots = options.max_sequences;
          return options;
        }()) {}

  void MaybeAdd() {
    if (added == 40 || random.Int(3) != 0) return;
    std::vector<int32_t> borders;
    const int32_t prompt = 1 + random.Int(random.Int(2) ? 20 : 400);
    for (int32_t at = random.Int(90); at > 0 && at < prompt;
         at += 1 + random.Int(90)) {
      borders.push_back(at);
    }
    SequenceSpec spec = Spec(added + 1, prompt, random.Int(30), borders);
    spec.all_logits = random.Int(5) == 0;
    if (!scheduler.CanEverFit(spec)) return;
    ++added;
    specs[spec.id] = spec;
    scheduler.Add(std::move(spec));
  }

  // Rows come in order, nothing is shared, the budget holds.
  void Check(const StepPlan& plan) {
    std::set<int32_t> blocks, slots;
    int32_t at = 0, decodes = 0;
    for (const PlannedRows& p : plan.sequences) {
      const SequenceSpec& spec = specs.at(p.id);
      EXPECT_EQ(p.row_begin, at);
      EXPECT_EQ(p.position, computed[p.id]);
      EXPECT_EQ(p.fresh, p.position == 0);
      at += p.rows;
      EXPECT_LE(p.position + p.rows,
                static_cast<int32_t>(p.state->blocks.size()) *
                    limits::kKvBlockTokens);
      for (const int32_t block : p.state->blocks) {
        EXPECT_TRUE(block >= 0 && block < options.kv_blocks);
        EXPECT_TRUE(blocks.insert(block).second) << "shared block " << block;
      }
      EXPECT_TRUE(slots.insert(p.state->slot).second);
      if (p.cells.empty()) {
        ++decodes;
        EXPECT_EQ(p.rows, 1);
        EXPECT_GE(p.position, spec.prompt_tokens);
        continue;
      }
      EXPECT_EQ(p.cells.back(), p.rows);
      for (const int32_t cell : p.cells) {
        seen[p.id].push_back(p.position + cell);
      }
      EXPECT_EQ(p.ends_prompt, p.position + p.rows == spec.prompt_tokens);
    }
    EXPECT_EQ(at, plan.rows);
    EXPECT_LE(plan.rows,
              std::max(options.step_tokens, decodes + limits::kGdnCellRows));
    // Every sequence that decodes is there.
    int32_t due = 0;
    for (const auto& [id, count] : computed) {
      due += count >= specs.at(id).prompt_tokens;
    }
    EXPECT_EQ(decodes, due);
  }

  // What the engine does behind a step.
  void Take(const StepPlan& plan) {
    scheduler.Advance(plan);
    for (const PlannedRows& p : plan.sequences) {
      const SequenceSpec& spec = specs.at(p.id);
      computed[p.id] = p.position + p.rows;
      const bool token = p.cells.empty() || p.ends_prompt;
      if (token && spec.max_tokens > 0) ++generated[p.id];
      const bool over = token && generated[p.id] >= spec.max_tokens;
      if (over || random.Int(80) == 0) End(p.id);
    }
  }
  void End(RequestId id) {
    EXPECT_TRUE(ended.insert(id).second);
    if (computed[id] >= specs.at(id).prompt_tokens) {
      EXPECT_EQ(seen[id], specs.at(id).cell_ends);
    }
    scheduler.Remove(id);
    computed.erase(id);
  }

  Seeded random;
  Scheduler::Options options;
  Scheduler scheduler;
  uint64_t added = 0;
  std::map<RequestId, SequenceSpec> specs;
  std::map<RequestId, int32_t> computed, generated;
  std::map<RequestId, std::vector<int32_t>> seen;
  std::set<RequestId> ended;
};

TEST(Scheduler, HoldsItsPromisesOverSeeds) {
  for (uint32_t seed = 1; seed <= 150; ++seed) {
    for (const int32_t budget : {64, 100, 512}) {
      SCOPED_TRACE(::testing::Message() << seed << " budget " << budget);
      World world(seed, budget);
      int steps = 0;
      for (; steps < 20000; ++steps) {
        world.MaybeAdd();
        const StepPlan plan = world.scheduler.PlanStep();
        world.Check(plan);
        world.Take(plan);
        if (::testing::Test::HasFailure()) return;
        if (plan.rows == 0 && world.scheduler.waiting() == 0 &&
            world.added >= 40) {
          break;
        }
        // Work that nobody plans would never end.
        ASSERT_TRUE(plan.rows > 0 || world.scheduler.waiting() == 0);
      }
      ASSERT_LT(steps, 20000);
      EXPECT_EQ(world.ended.size(), world.added);
      const StateAllocator& states = world.scheduler.states();
      EXPECT_EQ(states.blocks_free(), states.blocks_total());
      EXPECT_EQ(states.slots_free(), world.options.state_slots);
    }
  }
}

}  // namespace
}  // namespace conclave::schedule
