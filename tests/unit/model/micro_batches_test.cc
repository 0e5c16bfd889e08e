// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/micro_batches.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace conclave::model {
namespace {

using kernels::SequenceRows;
using kernels::StepBatch;

// A step of sequences with so many rows each; tokens count up from 100, and
// the last row of each sequence has logits.
struct Step {
  explicit Step(const std::vector<int32_t>& sizes) {
    int32_t row = 0;
    for (const int32_t size : sizes) {
      SequenceRows& s = sequences.emplace_back();
      s.row_begin = row;
      s.rows = size;
      s.position = 10 * row;
      row += size;
      logit_rows.push_back(row - 1);
    }
    tokens.resize(static_cast<size_t>(row));
    std::iota(tokens.begin(), tokens.end(), 100);
  }
  StepBatch batch() const {
    return {.sequences = sequences,
            .rows = static_cast<int32_t>(tokens.size())};
  }

  std::vector<SequenceRows> sequences;
  std::vector<int32_t> tokens, logit_rows;
};

// Every number of the step lies in exactly one part, at the place it says.
void ExpectWhole(const Step& step, const MicroBatches& cut) {
  std::vector<int32_t> tokens, logits;
  size_t sequence = 0;
  for (const MicroBatch& part : cut.all()) {
    EXPECT_EQ(part.row_begin, static_cast<int32_t>(tokens.size()));
    EXPECT_EQ(part.logits_begin, static_cast<int32_t>(logits.size()));
    EXPECT_EQ(part.tokens.size(), static_cast<size_t>(part.batch.rows));
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
    for (const int32_t row : part.logits) {
      logits.push_back(part.row_begin + row);
    }
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
  EXPECT_EQ(logits, step.logit_rows);
}

TEST(MicroBatches, OneIsTheStepItself) {
  const Step step({1, 3, 2});
  const MicroBatches cut(step.batch(), step.tokens, step.logit_rows, 1);
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
    const MicroBatches cut(step.batch(), step.tokens, step.logit_rows, 2);
    ASSERT_EQ(cut.all().size(), 2u);
    EXPECT_EQ(cut.all()[0].batch.rows, c.first);
    ExpectWhole(step, cut);
  }
}

TEST(MicroBatches, AHalfMayWantNoLogits) {
  Step step({4, 4});
  step.logit_rows = {6, 7};
  const MicroBatches cut(step.batch(), step.tokens, step.logit_rows, 2);
  EXPECT_TRUE(cut.all()[0].logits.empty());
  ExpectWhole(step, cut);
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

}  // namespace
}  // namespace conclave::model
