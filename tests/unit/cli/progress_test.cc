// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "tests/testing/simulated_clock.h"

namespace conclave::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr uint64_t kMb = 1'000'000;

// Standard error is a file here, as it is under a service manager.
class ProgressTest : public ::testing::Test {
 protected:
  void SetUp() override { ::testing::internal::CaptureStderr(); }
  // What was printed since the last call.
  std::vector<std::string> Lines() {
    const std::string text = ::testing::internal::GetCapturedStderr();
    ::testing::internal::CaptureStderr();
    return absl::StrSplit(text, '\n', absl::SkipEmpty());
  }
  void TearDown() override { ::testing::internal::GetCapturedStderr(); }

  testing::SimulatedClock clock_;
  Progress progress_{&clock_, true};
};

TEST_F(ProgressTest, EveryWorkerHasItsRateAndTimeLeft) {
  progress_.Update("w0", 0, 100 * kMb);
  progress_.Update("w1", 0, 100 * kMb);
  Lines();
  for (uint64_t second = 1; second <= 5; ++second) {
    clock_.Advance(absl::Seconds(1));
    progress_.Update("w0", second * 10 * kMb, 100 * kMb);
    progress_.Update("w1", second * kMb, 100 * kMb);
  }
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0],
              AllOf(StartsWith("load w0"),
                    HasSubstr(" 50 %"),
                    HasSubstr("10.0 MB/s"),
                    HasSubstr("5 s left")));
  EXPECT_THAT(lines[1],
              AllOf(StartsWith("load w1"),
                    HasSubstr("1.0 MB/s"),
                    HasSubstr("95 s left")));
}

TEST_F(ProgressTest, TheEndIsSaidOnceAndHidesNobody) {
  progress_.Update("w0", 0, 10 * kMb);
  progress_.Update("w1", 0, 100 * kMb);
  clock_.Advance(absl::Seconds(1));
  progress_.Update("w0", 10 * kMb, 10 * kMb);
  EXPECT_THAT(
      Lines().back(),
      AllOf(HasSubstr("100 %"), HasSubstr("10.0 MB/s"), HasSubstr("done")));
  clock_.Advance(absl::Seconds(60));
  progress_.Update("w0", 10 * kMb, 10 * kMb);
  progress_.Update("w1", 50 * kMb, 100 * kMb);
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], StartsWith("load w1"));
}

// Bytes that a worker held before do not count as loaded now.
TEST_F(ProgressTest, AWorkerThatComesBackBeginsAnew) {
  progress_.Update("w0", 0, 100 * kMb);
  clock_.Advance(absl::Seconds(100));
  progress_.Update("w0", 90 * kMb, 100 * kMb);
  progress_.Update("w0", 40 * kMb, 100 * kMb);
  EXPECT_THAT(Lines().back(),
              AllOf(HasSubstr(" 40 %"), Not(HasSubstr("left"))));
  clock_.Advance(absl::Seconds(5));
  progress_.Update("w0", 50 * kMb, 100 * kMb);
  EXPECT_THAT(Lines().back(),
              AllOf(HasSubstr("2.0 MB/s"), HasSubstr("25 s left")));
}

TEST_F(ProgressTest, SilentWhereNobodyAsked) {
  Progress silent(&clock_, false);
  silent.Update("w0", 1, 2);
  EXPECT_TRUE(Lines().empty());
}

}  // namespace
}  // namespace conclave::cli
