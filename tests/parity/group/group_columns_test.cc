// SPDX-License-Identifier: Apache-2.0
// Columns of several ranks on their way to rank 0: each from the right rank,
// never an old one, and what happens when a rank does not come.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "kernels/device_group.h"
#include "tests/testing/group_world.h"

namespace conclave::kernels {
namespace {

using testing::GroupCase;

constexpr int32_t kRowsMax = 33;

// What stands in a column says which step, row and column it is of.
float Number(int32_t step, int32_t row, int32_t column) {
  return static_cast<float>(step % 64 * 262144 + row % 64 * 4096 + column);
}

class World {
 public:
  World(const GroupCase& where,
        std::vector<int32_t> columns,
        absl::Duration deadline = absl::Minutes(1))
      : columns_(std::move(columns)),
        group(where,
              {.rows_max = 2,
               .cols = 64,
               .columns = columns_,
               .gathered_max = kRowsMax,
               .deadline = deadline}) {
    for (int32_t rank = 0; group.ok() && rank < group.ranks(); ++rank) {
      const int32_t width = rank == 0 ? columns_.back() : Width(rank);
      parts_.push_back(*group.queue(rank).Allocate(
          sizeof(float) * kRowsMax * std::max(width, 1), "a test's columns"));
    }
    if (!group.ok()) return;
    group.group().GatherInto(parts_[0].as<float>());
    group.Fill(1, 1);
  }

  int32_t Width(int32_t rank) const {
    return columns_[rank + 1] - columns_[rank];
  }

  // This rank's columns of a step; on rank 0 what others are to write is -1.
  absl::Status Load(int32_t rank, int32_t step, int32_t rows) {
    const int32_t begin = columns_[rank];
    const int32_t width = rank == 0 ? columns_.back() : Width(rank);
    std::vector<float> from(static_cast<size_t>(rows) * width, -1.0f);
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t c = 0; c < Width(rank); ++c) {
        from[static_cast<size_t>(r) * width + c] = Number(step, r, begin + c);
      }
    }
    return group.queue(rank).Upload(
        from.data(), from.size() * sizeof(float), parts_[rank].as<void>());
  }

  absl::Status Gather(int32_t rank, int32_t rows, bool again = false) {
    return group.group().GatherColumns(
        rank, {.rows = rows, .part = parts_[rank].as<float>(), .again = again});
  }

  // Columns of rank 0's rows that are not those of that step.
  int32_t Wrong(int32_t step, int32_t rows) {
    std::vector<float> got(static_cast<size_t>(rows) * columns_.back());
    EXPECT_TRUE(group.queue(0)
                    .Download(parts_[0].as<void>(),
                              got.size() * sizeof(float),
                              got.data())
                    .ok());
    int32_t wrong = 0;
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t c = 0; c < columns_.back(); ++c) {
        const float want = Number(step, r, c);
        if (got[static_cast<size_t>(r) * columns_.back() + c] != want) ++wrong;
      }
    }
    return wrong;
  }

  // Two sums, as steps have them, then columns.
  void Step(int32_t rank, int32_t step, int32_t rows) {
    ASSERT_TRUE(Load(rank, step, rows).ok());
    ASSERT_TRUE(group.Queue(rank, -1).ok());
    ASSERT_TRUE(Gather(rank, rows).ok());
    group.Finish(rank);
  }

 private:
  const std::vector<int32_t> columns_;

 public:
  testing::GroupWorld group;

 private:
  std::vector<DeviceBuffer> parts_;
};

// In fours, not in fours, and some without any.
std::vector<std::vector<int32_t>> Cuts(int32_t ranks) {
  if (ranks == 1) return {{0, 100}};
  if (ranks == 2) return {{0, 48, 100}, {0, 32, 63}, {0, 16, 16}};
  return {{0, 512, 1024, 1536, 2048}, {0, 16, 32, 48, 61}, {0, 16, 16, 29, 29}};
}

class Gathered : public ::testing::TestWithParam<GroupCase> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         Gathered,
                         ::testing::ValuesIn(testing::kGroupCases),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(Gathered, EachColumnIsOfItsRank) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  for (const std::vector<int32_t>& columns : Cuts(GetParam().ranks)) {
    SCOPED_TRACE(::testing::PrintToString(columns));
    World world(GetParam(), columns);
    ASSERT_TRUE(world.group.ok());
    int32_t step = 0;
    for (const int32_t rows : {1, 7, 2, kRowsMax, 1}) {
      ++step;
      world.group.EachRank([&](int32_t rank) { world.Step(rank, step, rows); });
      for (int32_t rank = 0; rank < GetParam().ranks; ++rank) {
        EXPECT_TRUE(world.group.end(rank).whole);
      }
      EXPECT_EQ(world.Wrong(step, rows), 0) << rows << " rows";
    }
  }
}

// Recorded, again and again; every column of every replay is looked at.
TEST_P(Gathered, ReplaysNeverTakeAnOldColumn) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  constexpr int32_t kRows = 3;
  const int32_t replays = GetParam().gpus ? 20'000 : 60;
  World world(GetParam(), Cuts(GetParam().ranks)[0]);
  ASSERT_TRUE(world.group.ok());
  std::atomic<int32_t> wrong = 0;
  world.group.EachRank([&](int32_t rank) {
    DeviceQueue& queue = world.group.queue(rank);
    ASSERT_TRUE(queue.BeginRecording().ok());
    ASSERT_TRUE(world.group.Queue(rank, -1).ok());
    ASSERT_TRUE(world.Gather(rank, kRows).ok());
    const auto graph = queue.EndRecording();
    ASSERT_TRUE(graph.ok()) << graph.status();
    for (int32_t i = 0; i < replays; ++i) {
      ASSERT_TRUE(world.Load(rank, i, kRows).ok());
      ASSERT_TRUE(queue.Launch(*graph).ok());
      if (rank == 0) wrong += world.Wrong(i, kRows);
    }
    world.group.Finish(rank);
    EXPECT_TRUE(world.group.end(rank).whole);
  });
  EXPECT_EQ(wrong, 0) << "of " << replays << " replays";
}

// Without sums between: rank 0 takes its time with what it has, and the others
// would be far ahead if they did not wait for it.
TEST_P(Gathered, AgainWaitsForRankZero) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  constexpr int32_t kRows = 5, kTimes = 4;
  World world(GetParam(), Cuts(GetParam().ranks)[0]);
  ASSERT_TRUE(world.group.ok());
  for (int32_t step = 0; step < 3; ++step) {
    world.group.EachRank([&](int32_t rank) {
      for (int32_t i = 0; i < kTimes; ++i) {
        ASSERT_TRUE(world.Load(rank, kTimes * step + i, kRows).ok());
        if (i == 0) {
          ASSERT_TRUE(world.group.Queue(rank, -1).ok());
        }
        ASSERT_TRUE(world.Gather(rank, kRows, i > 0).ok());
        if (rank > 0) continue;
        world.group.Finish(0);
        RealClock()->SleepUntil(RealClock()->Now() + absl::Milliseconds(20));
        EXPECT_EQ(world.Wrong(kTimes * step + i, kRows), 0);
      }
      world.group.Finish(rank);
      EXPECT_TRUE(world.group.end(rank).whole);
    });
  }
}

void ExpectNextStep(World& world) {
  ASSERT_TRUE(world.group.group().Reset().ok());
  world.group.EachRank([&](int32_t rank) { world.Step(rank, 9, 2); });
  EXPECT_TRUE(world.group.end(0).whole);
  EXPECT_EQ(world.Wrong(9, 2), 0);
}

TEST_P(Gathered, ARankThatDoesNotComeIsNamed) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  if (GetParam().ranks < 2) GTEST_SKIP() << "one rank waits for nobody";
  World world(GetParam(), Cuts(GetParam().ranks)[0], absl::Milliseconds(300));
  ASSERT_TRUE(world.group.ok());
  const int32_t gone = GetParam().ranks - 1;
  world.group.EachRank([&](int32_t rank) {
    ASSERT_TRUE(world.group.Queue(rank, -1).ok());
    if (rank != gone) {
      ASSERT_TRUE(world.Gather(rank, 2).ok());
    }
    world.group.Finish(rank);
  });
  EXPECT_FALSE(world.group.end(0).whole);
  EXPECT_EQ(world.group.end(0).missed, gone);
  EXPECT_EQ(world.group.end(0).number, DeviceGroup::kGathering);
  ExpectNextStep(world);
}

TEST_P(Gathered, RankZeroIsNamedWhereOthersWaitForIt) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  if (GetParam().ranks < 2) GTEST_SKIP() << "one rank waits for nobody";
  if (GetParam().exchange == GroupExchange::kNccl) {
    GTEST_SKIP() << "NCCL has taken what is so small before it is received";
  }
  World world(GetParam(), Cuts(GetParam().ranks)[0], absl::Milliseconds(300));
  ASSERT_TRUE(world.group.ok());
  world.group.EachRank([&](int32_t rank) {
    ASSERT_TRUE(world.group.Queue(rank, -1).ok());
    ASSERT_TRUE(world.Gather(rank, 2).ok());
    if (rank > 0) {
      ASSERT_TRUE(world.Gather(rank, 2, /*again=*/true).ok());
    }
    world.group.Finish(rank);
  });
  bool named = false;
  for (int32_t rank = 1; rank < GetParam().ranks; ++rank) {
    EXPECT_FALSE(world.group.end(rank).whole);
    if (world.group.end(rank).missed < 0) continue;
    named = true;
    EXPECT_EQ(world.group.end(rank).missed, 0);
    EXPECT_EQ(world.group.end(rank).number, DeviceGroup::kGathering);
  }
  EXPECT_TRUE(named);
  ExpectNextStep(world);
}

TEST_P(Gathered, AbortEndsAWait) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  if (GetParam().ranks < 2) GTEST_SKIP() << "one rank waits for nobody";
  World world(GetParam(), Cuts(GetParam().ranks)[0], absl::Minutes(10));
  ASSERT_TRUE(world.group.ok());
  std::thread other([&] {
    EXPECT_TRUE(world.Gather(0, 2).ok());
    world.group.Finish(0);
  });
  world.group.group().Abort();
  other.join();
  EXPECT_FALSE(world.group.end(0).whole);
  EXPECT_EQ(world.group.end(0).missed, -1);
  ExpectNextStep(world);
}

}  // namespace
}  // namespace conclave::kernels
