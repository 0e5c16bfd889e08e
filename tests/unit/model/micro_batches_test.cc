// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/micro_batches.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "tests/testing/simulated_clock.h"

namespace conclave::model {
namespace {

using kernels::SequenceRows;
using kernels::StepBatch;

// A step of sequences with so many rows each; tokens count up from 100.
struct Step {
  explicit Step(const std::vector<int32_t>& sizes) {
    int32_t row = 0;
    for (const int32_t size : sizes) {
      SequenceRows& s = sequences.emplace_back();
      s.row_begin = row;
      s.rows = size;
      s.position = 10 * row;
      row += size;
    }
    tokens.resize(static_cast<size_t>(row));
    std::iota(tokens.begin(), tokens.end(), 100);
  }
  StepBatch batch() const {
    return {.sequences = sequences,
            .rows = static_cast<int32_t>(tokens.size())};
  }

  std::vector<SequenceRows> sequences;
  std::vector<int32_t> tokens;
};

// Every number of the step lies in exactly one part, at the place it says.
void ExpectWhole(const Step& step, const MicroBatches& cut) {
  std::vector<int32_t> tokens;
  size_t sequence = 0;
  for (const MicroBatch& part : cut.all()) {
    EXPECT_EQ(part.row_begin, static_cast<int32_t>(tokens.size()));
    EXPECT_EQ(part.tokens.size(), static_cast<size_t>(part.batch.rows));
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
    int32_t rows = 0;
    for (const SequenceRows& s : part.batch.sequences) {
      const SequenceRows& whole = step.sequences[sequence++];
      EXPECT_EQ(s.row_begin, rows);
      EXPECT_EQ(s.row_begin + part.row_begin, whole.row_begin);
      EXPECT_EQ(s.rows, whole.rows);
      EXPECT_EQ(s.position, whole.position);
      rows += s.rows;
    }
    EXPECT_EQ(rows, part.batch.rows);
  }
  EXPECT_EQ(sequence, step.sequences.size());
  EXPECT_EQ(tokens, step.tokens);
}

TEST(MicroBatches, OneIsTheStepItself) {
  const Step step({1, 3, 2});
  const MicroBatches cut(step.batch(), step.tokens, 1);
  ASSERT_EQ(cut.all().size(), 1u);
  ExpectWhole(step, cut);
}

TEST(MicroBatches, TwoAreCutBetweenSequencesNearTheMiddle) {
  const struct {
    std::vector<int32_t> sizes;
    int32_t first;  // rows of the first half
  } cases[] = {{{1, 1}, 1},
               {{1, 1, 1}, 1},
               {{1, 1, 1, 1}, 2},
               {{1, 1, 1, 200}, 3},
               {{200, 1, 1, 1}, 200},
               {{64, 64, 100}, 128},
               {{1, 1, 1, 1, 64, 64, 2}, 68}};
  for (const auto& c : cases) {
    const Step step(c.sizes);
    const MicroBatches cut(step.batch(), step.tokens, 2);
    ASSERT_EQ(cut.all().size(), 2u);
    EXPECT_EQ(cut.all()[0].batch.rows, c.first);
    ExpectWhole(step, cut);
  }
}

// Runs `steps` steps of `rows` rows, each as it is told to, taking `took[m]`
// with m + 1 micro-batches; returns how many ran with two.
int32_t Twos(MicroBatchChoice* choice,
             int32_t rows,
             int32_t steps,
             const absl::Duration (&took)[2]) {
  int32_t twos = 0;
  for (int32_t i = 0; i < steps; ++i) {
    const int32_t count = choice->For(rows);
    twos += count == 2 ? 1 : 0;
    choice->Took(rows, count, took[count - 1]);
  }
  return twos;
}

constexpr int32_t kTries = MicroBatchChoice::kTries;
constexpr int32_t kKept = MicroBatchChoice::kKept;
const absl::Duration kTwoIsFaster[2] = {absl::Milliseconds(10),
                                        absl::Milliseconds(8)};
const absl::Duration kTwoIsSlower[2] = {absl::Milliseconds(10),
                                        absl::Milliseconds(12)};

TEST(MicroBatchChoice, FixedIsFixed) {
  for (const int32_t fixed : {1, 2}) {
    MicroBatchChoice choice(fixed);
    for (int32_t i = 0; i < 4 * kTries; ++i) {
      EXPECT_EQ(choice.For(64), fixed);
      choice.Took(64, fixed, absl::Milliseconds(1));
    }
  }
}

TEST(MicroBatchChoice, TriesBothInTurnAndKeepsTheFaster) {
  MicroBatchChoice faster(0);
  for (int32_t i = 0; i < 2 * kTries; ++i) {
    EXPECT_EQ(faster.For(64), 1 + i % 2);
    faster.Took(64, 1 + i % 2, kTwoIsFaster[i % 2]);
  }
  EXPECT_EQ(Twos(&faster, 64, kKept, kTwoIsFaster), kKept);

  MicroBatchChoice slower(0);
  EXPECT_EQ(Twos(&slower, 64, 2 * kTries, kTwoIsSlower), kTries);
  EXPECT_EQ(Twos(&slower, 64, kKept, kTwoIsSlower), 0);
}

TEST(MicroBatchChoice, TwoMustGainMoreThanNoise) {
  const absl::Duration barely[2] = {absl::Microseconds(1000),
                                    absl::Microseconds(975)};
  const absl::Duration enough[2] = {absl::Microseconds(1000),
                                    absl::Microseconds(965)};
  MicroBatchChoice choice(0);
  Twos(&choice, 64, 2 * kTries, barely);
  EXPECT_EQ(choice.For(64), 1);
  MicroBatchChoice other(0);
  Twos(&other, 64, 2 * kTries, enough);
  EXPECT_EQ(other.For(64), 2);
}

TEST(MicroBatchChoice, AnOutlierDoesNotDecide) {
  MicroBatchChoice choice(0);
  choice.Took(64, choice.For(64), absl::Seconds(1));  // the first step, with 1
  Twos(&choice, 64, 2 * kTries - 1, kTwoIsSlower);
  EXPECT_EQ(choice.For(64), 1);
}

TEST(MicroBatchChoice, AgainAfterAWhileAtABoundedCost) {
  MicroBatchChoice choice(0);
  Twos(&choice, 64, 2 * kTries, kTwoIsSlower);
  EXPECT_EQ(Twos(&choice, 64, kKept, kTwoIsSlower), 0);
  EXPECT_EQ(Twos(&choice, 64, 2 * kTries, kTwoIsSlower), kTries);
  EXPECT_EQ(Twos(&choice, 64, kKept, kTwoIsSlower), 0);
  // Times have changed.
  Twos(&choice, 64, 2 * kTries, kTwoIsFaster);
  EXPECT_EQ(Twos(&choice, 64, kKept, kTwoIsFaster), kKept);
}

TEST(MicroBatchChoice, StepsOfOtherSizesDecideForThemselves) {
  MicroBatchChoice choice(0);
  Twos(&choice, 64, 2 * kTries, kTwoIsFaster);
  Twos(&choice, 8, 2 * kTries, kTwoIsSlower);
  EXPECT_EQ(choice.For(64), 2);
  EXPECT_EQ(choice.For(127), 2);
  EXPECT_EQ(choice.For(128), 1);  // not tried yet
  EXPECT_EQ(choice.For(8), 1);
  EXPECT_EQ(choice.For(15), 1);
}

TEST(MicroBatchChoice, StepsThatRanOtherwiseThanToldDoNotHurt) {
  MicroBatchChoice choice(0);
  for (int32_t i = 0; i < 3 * kTries; ++i) {
    choice.Took(64, 1, absl::Milliseconds(10));
  }
  EXPECT_EQ(Twos(&choice, 64, kTries, kTwoIsFaster), kTries);
  EXPECT_EQ(choice.For(64), 2);
}

TEST(MicroBatchSteps, MeasureAndCount) {
  testing::SimulatedClock clock;
  Metrics metrics;
  MicroBatchSteps steps({.count = 0, .clock = &clock, .metrics = &metrics});
  const Step two({1, 1}), one({2});
  const auto run = [&](const Step& step, bool may_cut) {
    const int32_t count = steps.Begin(step.batch(), may_cut);
    clock.Advance(kTwoIsFaster[count - 1]);
    steps.End();
    return count;
  };
  for (int32_t i = 0; i < 2 * kTries; ++i) {
    EXPECT_EQ(run(two, true), 1 + i % 2);
    // These cannot be cut, and decide nothing.
    EXPECT_EQ(run(one, true), 1);
    EXPECT_EQ(run(two, false), 1);
  }
  // A step that failed is not counted.
  steps.Begin(two.batch(), true);
  EXPECT_EQ(run(two, true), 2);
  const std::string text = metrics.Render();
  EXPECT_NE(
      text.find("conclave_micro_batch_steps_total{micro_batches=\"2\"} 6"),
      std::string::npos)
      << text;
  EXPECT_NE(
      text.find("conclave_micro_batch_steps_total{micro_batches=\"1\"} 25"),
      std::string::npos)
      << text;
}

}  // namespace
}  // namespace conclave::model
