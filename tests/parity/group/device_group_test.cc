// SPDX-License-Identifier: Apache-2.0
// Sums over ranks: the bits of a plain loop on every rank, and what happens
// when a rank does not come.
#include "kernels/device_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "tests/testing/group_world.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

using testing::GroupWorld;

class GroupOfRanks : public ::testing::TestWithParam<testing::GroupCase> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupOfRanks,
                         ::testing::ValuesIn(testing::kGroupCases),
                         [](const auto& info) { return info.param.Name(); });

// Several steps, whose numbers of rows differ: nothing of the step before is
// taken for this one's.
TEST_P(GroupOfRanks, SumsInRankOrderOnAllRanks) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  GroupWorld world(GetParam(), {.rows_max = 300, .cols = 256});
  ASSERT_TRUE(world.ok());
  uint32_t seed = 1;
  for (const int32_t rows : {1, 7, 2, 300, 1, 33}) {
    for (const int32_t only : {-1, 0, world.ranks() - 1}) {
      SCOPED_TRACE(::testing::Message() << rows << " rows, only " << only);
      world.Fill(++seed, rows);
      const testing::GroupWorld::Rows want = world.Expected(only);
      world.EachRank([&](int32_t rank) { world.Step(rank, only); });
      for (int32_t rank = 0; rank < world.ranks(); ++rank) {
        ASSERT_TRUE(world.end(rank).whole);
        EXPECT_EQ(world.X(rank), want.x) << "rank " << rank;
        EXPECT_EQ(world.U(rank), world.U(0)) << "rank " << rank;
        EXPECT_LE(testing::RelativeError(
                      world.U(rank).data(), want.u.data(), want.u.size()),
                  1e-6);
      }
    }
  }
}

// No number that a model could compute is taken for an empty slot.
TEST_P(GroupOfRanks, SumsOfWhatIsNoNumberArrive) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  GroupWorld world(GetParam(), {.rows_max = 4, .cols = 64});
  ASSERT_TRUE(world.ok());
  world.Fill(3, 4);
  world.SetPart(0, 5, std::bit_cast<float>(0xffffffffu));
  world.SetPart(world.ranks() - 1, 7, std::numeric_limits<float>::infinity());
  world.EachRank([&](int32_t rank) { world.Step(rank, -1); });
  for (int32_t rank = 0; rank < world.ranks(); ++rank) {
    ASSERT_TRUE(world.end(rank).whole);
    EXPECT_TRUE(std::isnan(world.X(rank)[5]));
    EXPECT_TRUE(std::isinf(world.X(rank)[7]));
  }
}

// After a step that was not whole; `only` as GroupWorld::Expected.
void ExpectNextStep(GroupWorld& world,
                    int32_t only,
                    const std::function<void(int32_t)>& step) {
  ASSERT_TRUE(world.group().Reset().ok());
  world.Fill(5, 3);
  const testing::GroupWorld::Rows want = world.Expected(only);
  world.EachRank(step);
  for (int32_t rank = 0; rank < world.ranks(); ++rank) {
    ASSERT_TRUE(world.end(rank).whole);
    EXPECT_EQ(world.X(rank), want.x);
  }
}

TEST_P(GroupOfRanks, ARankThatDoesNotComeIsNamed) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  if (GetParam().ranks < 2) GTEST_SKIP() << "one rank waits for nobody";
  GroupWorld world(
      GetParam(),
      {.rows_max = 8, .cols = 64, .deadline = absl::Milliseconds(300)});
  ASSERT_TRUE(world.ok());
  world.Fill(4, 8);
  const int32_t gone = world.ranks() - 1;
  world.EachRank([&](int32_t rank) {
    if (rank != gone) world.Step(rank, -1);
  });
  bool named = false;
  for (int32_t rank = 0; rank < gone; ++rank) {
    EXPECT_FALSE(world.end(rank).whole);
    named = named || world.end(rank).missed == gone;
    EXPECT_EQ(world.end(rank).number, 0);
  }
  EXPECT_TRUE(named);
  ExpectNextStep(world, -1, [&](int32_t rank) { world.Step(rank, -1); });
}

// In the midst of a recorded step: after a sum to which all came.
TEST_P(GroupOfRanks, ARankThatStopsInARecordedStepIsNamed) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  if (GetParam().ranks < 2) GTEST_SKIP() << "one rank waits for nobody";
  GroupWorld world(
      GetParam(),
      {.rows_max = 8, .cols = 64, .deadline = absl::Milliseconds(300)});
  ASSERT_TRUE(world.ok());
  const int32_t gone = world.ranks() - 1;
  const auto step = [&](int32_t rank, int32_t sums) {
    DeviceQueue& queue = world.queue(rank);
    ASSERT_TRUE(queue.BeginRecording().ok());
    ASSERT_TRUE(world.Queue(rank, 0, sums).ok());
    const auto graph = queue.EndRecording();
    ASSERT_TRUE(graph.ok()) << graph.status();
    ASSERT_TRUE(queue.Launch(*graph).ok());
    world.Finish(rank);
  };
  world.Fill(4, 8);
  world.EachRank([&](int32_t rank) { step(rank, rank == gone ? 1 : 2); });
  bool named = false;
  for (int32_t rank = 0; rank < gone; ++rank) {
    EXPECT_FALSE(world.end(rank).whole);
    // The others may have been told by the first who saw it.
    if (world.end(rank).missed < 0) continue;
    named = true;
    EXPECT_EQ(world.end(rank).missed, gone);
    EXPECT_EQ(world.end(rank).number, 1);
  }
  EXPECT_TRUE(named);
  ExpectNextStep(world, 0, [&](int32_t rank) { step(rank, 2); });
}

TEST_P(GroupOfRanks, AbortEndsAWait) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  if (GetParam().ranks < 2) GTEST_SKIP() << "one rank waits for nobody";
  GroupWorld world(GetParam(),
                   {.rows_max = 8, .cols = 64, .deadline = absl::Minutes(10)});
  ASSERT_TRUE(world.ok());
  world.Fill(4, 8);
  std::thread other([&] { world.Step(0, -1); });
  world.group().Abort();
  other.join();
  EXPECT_FALSE(world.end(0).whole);
  EXPECT_EQ(world.end(0).missed, -1);
}

// Recorded steps, again and again, of values that differ from those before:
// every number of every replay is looked at.
TEST_P(GroupOfRanks, ReplaysNeverTakeAnOldValue) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  constexpr int32_t kRows = 3, kCols = 4096, kVariants = 7;
  const int32_t replays = GetParam().gpus ? 100'000 : 150;
  GroupWorld world(GetParam(), {.rows_max = 8, .cols = kCols});
  ASSERT_TRUE(world.ok());
  std::vector<std::vector<std::vector<float>>> parts;  // [variant][rank]
  std::vector<std::vector<float>> x, want;
  for (uint32_t v = 0; v < kVariants; ++v) {
    world.Fill(100 + v, kRows);
    x.push_back(world.filled_x());
    want.push_back(world.Expected(0).x);
    std::vector<std::vector<float>>& of = parts.emplace_back();
    for (int32_t r = 0; r < world.ranks(); ++r) of.push_back(world.part(r));
  }
  std::atomic<int64_t> wrong = 0;
  world.EachRank([&](int32_t rank) {
    DeviceQueue& queue = world.queue(rank);
    ASSERT_TRUE(queue.BeginRecording().ok());
    ASSERT_TRUE(world.Queue(rank, 0).ok());
    const auto graph = queue.EndRecording();
    ASSERT_TRUE(graph.ok()) << graph.status();
    for (int32_t i = 0; i < replays; ++i) {
      const size_t v = static_cast<size_t>(i) % kVariants;
      ASSERT_TRUE(world.Load(rank, x[v], parts[v][rank]).ok());
      ASSERT_TRUE(queue.Launch(*graph).ok());
      if (world.X(rank) != want[v]) ++wrong;
    }
    world.Finish(rank);
    EXPECT_TRUE(world.end(rank).whole);
  });
  EXPECT_EQ(wrong, 0) << "of " << replays << " replays";
}

}  // namespace
}  // namespace conclave::kernels
