// SPDX-License-Identifier: Apache-2.0
// Steps cut into two micro-batches that a group computes at once: what the
// whole step gives, whichever lane a sequence is in.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "kernels/host/stream.h"
#include "tests/parity/group/group_runner.h"
#include "tests/parity/group/sampled.h"
#include "tests/testing/golden.h"
#include "tests/testing/seeded.h"

namespace conclave::testing {
namespace {

constexpr int32_t kVocab = 2048;
constexpr double kExact = 1e-5;

class GroupMicroBatches : public ::testing::TestWithParam<GroupSetting> {
 protected:
  std::unique_ptr<GroupRunner> Make(
      int32_t micro_batches, absl::Duration deadline = absl::Minutes(1)) {
    GroupSetting setting = GetParam();
    setting.micro_batches = micro_batches;
    return std::make_unique<GroupRunner>(
        TinyModel(), setting, /*exact=*/true, deadline);
  }
  // Rows of a step on a GPU may take another form than fewer of them.
  void ExpectSame(const std::vector<float>& got,
                  const std::vector<float>& want) const {
    ASSERT_EQ(got.size(), want.size());
    if (!GetParam().where.gpus) {
      EXPECT_EQ(got, want);
    }
    EXPECT_LE(RelativeError(got.data(), want.data(), want.size()), kExact);
  }
};

std::vector<GroupSetting> OfTwoRanks() {
  std::vector<GroupSetting> out;
  for (const GroupSetting& setting : GroupSettings()) {
    if (setting.where.ranks == 2) out.push_back(setting);
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupMicroBatches,
                         ::testing::ValuesIn(OfTwoRanks()),
                         [](const auto& info) { return info.param.Name(); });

// Prompts of several sequences in one step, with logits of some rows, then
// single rows of changing sequences; hidden rows too.
std::vector<float> Walk(ModelRunner& runner) {
  Seeded random(21);
  std::vector<ModelRunner::Sequence> sequences;
  std::vector<ModelRunner::Feed> feeds;
  std::vector<float> out;
  for (int32_t s = 0; s < 5; ++s) sequences.push_back(runner.Open(s));
  for (int32_t s = 0; s < 5; ++s) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 3 + 23 * s; ++i) ids.push_back(random.Int(kVocab));
    feeds.push_back({.sequence = &sequences[s],
                     .tokens = ids,
                     .prefill = true,
                     .logits_from = 2 * s});
  }
  for (int32_t step = 0; step < 8; ++step) {
    const auto logits = runner.Step(feeds);
    EXPECT_TRUE(logits.ok()) << logits.status();
    if (!logits.ok()) return {};
    for (const std::vector<float>& each : *logits) {
      out.insert(out.end(), each.begin(), each.end());
    }
    out.insert(out.end(), runner.hidden().begin(), runner.hidden().end());
    feeds.clear();
    for (int32_t s = 0; s < 5; ++s) {
      if (step % 5 == s) continue;
      feeds.push_back(
          {.sequence = &sequences[s], .tokens = {random.Int(kVocab)}});
    }
  }
  return out;
}

TEST_P(GroupMicroBatches, AreTheWholeStep) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  const auto whole = Make(1);
  const auto cut = Make(2);
  ASSERT_TRUE(whole->decoder != nullptr && cut->decoder != nullptr);
  ExpectSame(Walk(*cut->runner), Walk(*whole->runner));
  EXPECT_EQ(whole->decoder->steps_cut(), 0);
  // The prompts' longer half has more rows than the second lane's arrays
  // where it comes last; single rows always fit.
  EXPECT_GE(cut->decoder->steps_cut(), 7);
}

TEST_P(GroupMicroBatches, ChooseTheSameTokens) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  const auto whole = Make(1);
  const auto cut = Make(2);
  ASSERT_TRUE(whole->decoder != nullptr && cut->decoder != nullptr);
  EXPECT_EQ(Sampled(*cut->runner, kVocab), Sampled(*whole->runner, kVocab));
  EXPECT_EQ(cut->decoder->steps_cut(), 12);
}

TEST_P(GroupMicroBatches, AreTriedAndKeptByWhatTheyGain) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  const auto by_gain = Make(0);
  ASSERT_NE(by_gain->decoder, nullptr);
  Sampled(*by_gain->runner, kVocab);
  // Both numbers were tried; which is kept depends on the machine.
  EXPECT_GE(by_gain->decoder->steps_cut(), 2);
  EXPECT_LT(by_gain->decoder->steps_cut(), 12);
}

// Two sequences, one in each lane.
absl::StatusOr<std::vector<std::vector<float>>> StepOfTwo(GroupRunner& group) {
  ModelRunner::Sequence one = group.runner->Open(0);
  ModelRunner::Sequence two = group.runner->Open(1);
  const auto& ids = FindGolden("len63").ids;
  return group.runner->Step(
      {{.sequence = &one, .tokens = ids, .prefill = true, .logits_from = 62},
       {.sequence = &two, .tokens = ids, .prefill = true, .logits_from = 62}});
}

TEST_P(GroupMicroBatches, ARankThatStallsInOneEndsBoth) {
  if (GetParam().where.gpus) GTEST_SKIP() << "faults are scripted on twins";
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  constexpr absl::Duration kDeadline = absl::Seconds(3);
  const auto group = Make(2, kDeadline);
  ASSERT_NE(group->decoder, nullptr);
  const auto want = StepOfTwo(*group);
  ASSERT_TRUE(want.ok()) << want.status();
  EXPECT_EQ(group->decoder->steps_cut(), 1);
  auto left = std::make_shared<std::atomic<int32_t>>(17);
  kernels::host::StreamOf(group->decoder->queue(1))->fault = [left] {
    if ((*left)-- == 0) {
      RealClock()->SleepUntil(RealClock()->Now() + kDeadline * 1.5);
    }
    return absl::OkStatus();
  };
  const auto got = StepOfTwo(*group);
  EXPECT_EQ(got.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(
      got.status().message().find("rank 1 (device 1) did not come to the sum"),
      std::string::npos)
      << got.status();
  EXPECT_TRUE(group->decoder->Health().ok());
  const auto again = StepOfTwo(*group);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *want);
}

}  // namespace
}  // namespace conclave::testing
