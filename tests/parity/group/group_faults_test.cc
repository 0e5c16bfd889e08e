// SPDX-License-Identifier: Apache-2.0
// A rank that stalls or fails in the middle of a step: an error that names it,
// and the next step works, unless its device is lost.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "kernels/host/stream.h"
#include "tests/parity/group/group_runner.h"
#include "tests/testing/golden.h"

namespace conclave::testing {
namespace {

constexpr absl::Duration kDeadline = absl::Seconds(3);

class GroupFaults : public ::testing::TestWithParam<GroupSetting> {
 protected:
  void SetUp() override { Make(kDeadline); }
  void Make(absl::Duration deadline) {
    CONCLAVE_REQUIRE_GROUP(GetParam().where);
    group_ = std::make_unique<GroupRunner>(
        TinyModel(), GetParam(), /*exact=*/true, deadline);
    ASSERT_NE(group_->decoder, nullptr);
  }

  // What befalls that rank at its `work`th piece of work from now on.
  void At(int32_t rank, int32_t work, std::function<absl::Status()> fault) {
    auto left = std::make_shared<std::atomic<int32_t>>(work);
    kernels::host::StreamOf(group_->decoder->queue(rank))->fault =
        [left, fault] { return (*left)-- == 0 ? fault() : absl::OkStatus(); };
  }

  absl::StatusOr<std::vector<int32_t>> Greedy() {
    return group_->runner->Greedy(FindGolden("len63").ids, 3);
  }
  void ExpectGreedy() {
    const auto got = Greedy();
    ASSERT_TRUE(got.ok()) << got.status();
    const std::vector<int32_t>& want = FindGolden("len63").greedy_ids;
    EXPECT_EQ(*got, std::vector<int32_t>(want.begin(), want.begin() + 3));
  }
  static void ExpectSays(const absl::Status& status, const std::string& what) {
    EXPECT_NE(status.message().find(what), std::string::npos) << status;
  }

  std::unique_ptr<GroupRunner> group_;
};

std::vector<GroupSetting> On(bool gpus) {
  std::vector<GroupSetting> out;
  for (const GroupSetting& setting : FewGroupSettings()) {
    if (setting.where.gpus == gpus) out.push_back(setting);
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupFaults,
                         ::testing::ValuesIn(On(/*gpus=*/false)),
                         [](const auto& info) { return info.param.Name(); });

// Work of something else that holds a GPU up.
class GroupStalls : public GroupFaults {
 protected:
  static constexpr absl::Duration kOfGpus = absl::Milliseconds(1500);
  void SetUp() override { Make(kOfGpus); }

  // For longer than the deadline, but less than twice.
  void Stall(int32_t rank) {
    constexpr size_t kBytes = size_t{8} << 30;
    kernels::DeviceQueue& queue = *group_->decoder->queue(rank);
    auto memory = queue.Allocate(kBytes, "a test's stall");
    ASSERT_TRUE(memory.ok()) << memory.status();
    const auto fills = [&](int32_t count) {
      for (int32_t i = 0; i < count; ++i) {
        ASSERT_TRUE(queue.Fill(*memory, 1).ok());
      }
    };
    fills(1);
    ASSERT_TRUE(queue.Wait().ok());
    const absl::Time begin = RealClock()->Now();
    fills(10);
    ASSERT_TRUE(queue.Wait().ok());
    const absl::Duration each = (RealClock()->Now() - begin) / 10;
    fills(static_cast<int32_t>(1.4 * kOfGpus / each));
    stalls_.push_back(*std::move(memory));
  }

  std::vector<kernels::DeviceBuffer> stalls_;  // until the stall is over
};

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupStalls,
                         ::testing::ValuesIn(On(/*gpus=*/true)),
                         [](const auto& info) { return info.param.Name(); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GroupStalls);

TEST_P(GroupStalls, AGpuThatIsHeldUpIsNamed) {
  ExpectGreedy();
  const int32_t last = GetParam().where.ranks - 1;
  Stall(last);
  const auto got = Greedy();
  EXPECT_EQ(got.status().code(), absl::StatusCode::kUnavailable);
  ExpectSays(got.status(),
             "rank " + std::to_string(last) + " (device " +
                 std::to_string(last) + ") did not come to the sum after the ");
  EXPECT_TRUE(group_->decoder->Health().ok());
  ExpectGreedy();
}

TEST_P(GroupFaults, ARankThatStallsIsNamed) {
  ExpectGreedy();
  const int32_t last = GetParam().where.ranks - 1;
  At(last, 17, [] {
    RealClock()->SleepUntil(RealClock()->Now() + kDeadline * 1.5);
    return absl::OkStatus();
  });
  const auto got = Greedy();
  EXPECT_EQ(got.status().code(), absl::StatusCode::kUnavailable);
  ExpectSays(got.status(),
             "rank " + std::to_string(last) + " (device " +
                 std::to_string(last) + ") did not come to the sum after the ");
  ExpectSays(got.status(), " of layer ");
  EXPECT_TRUE(group_->decoder->Health().ok());
  ExpectGreedy();
}

// The last that a rank does of a step is to send its part of the head.
TEST_P(GroupFaults, ARankThatStallsInTheHeadIsNamed) {
  const int32_t last = GetParam().where.ranks - 1;
  const auto first = [&] {
    return group_->runner->Greedy(FindGolden("len63").ids, 1);
  };
  const auto works = std::make_shared<std::atomic<int32_t>>(0);
  kernels::host::StreamOf(group_->decoder->queue(last))->fault = [works] {
    ++*works;
    return absl::OkStatus();
  };
  ASSERT_TRUE(first().ok());
  At(last, *works - 1, [] {
    RealClock()->SleepUntil(RealClock()->Now() + kDeadline * 1.5);
    return absl::OkStatus();
  });
  const auto got = first();
  EXPECT_EQ(got.status().code(), absl::StatusCode::kUnavailable);
  ExpectSays(got.status(),
             "rank " + std::to_string(last) + " (device " +
                 std::to_string(last) +
                 ") did not come to the head's exchange within 3s; rank 0 "
                 "waited for it");
  EXPECT_TRUE(group_->decoder->Health().ok());
  ExpectGreedy();
}

TEST_P(GroupFaults, ARankThatFailsIsNamed) {
  for (int32_t rank = 0; rank < GetParam().where.ranks; ++rank) {
    At(rank, 30, [] { return absl::ResourceExhaustedError("no room"); });
    const auto got = Greedy();
    EXPECT_EQ(got.status().code(), absl::StatusCode::kUnavailable);
    ExpectSays(got.status(),
               "rank " + std::to_string(rank) + " (device " +
                   std::to_string(rank) + "): no room");
    EXPECT_TRUE(group_->decoder->Health().ok());
    ExpectGreedy();
  }
}

TEST_P(GroupFaults, ALostDeviceEndsTheGroup) {
  At(1, 30, [] { return absl::InternalError("an illegal address"); });
  const auto got = Greedy();
  ExpectSays(got.status(), "rank 1 (device 1): an illegal address");
  ExpectSays(group_->decoder->Health(), "rank 1 (device 1)");
  EXPECT_FALSE(Greedy().ok());
}

TEST_P(GroupFaults, ARankThatNeverComesBackEndsTheGroup) {
  const auto go = std::make_shared<std::atomic<bool>>(false);
  At(1, 5, [go] {
    while (!*go) {
      RealClock()->SleepUntil(RealClock()->Now() + absl::Milliseconds(10));
    }
    return absl::OkStatus();
  });
  const auto got = Greedy();
  ExpectSays(got.status(), "rank 1 (device 1) did not end its step within");
  EXPECT_EQ(group_->decoder->Health(), got.status());
  EXPECT_EQ(Greedy().status(), got.status());
  *go = true;
}

}  // namespace
}  // namespace conclave::testing
