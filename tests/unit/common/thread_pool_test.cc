// SPDX-License-Identifier: Apache-2.0
#include "common/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace conclave {
namespace {

struct Team {
  int32_t threads;
  int32_t spin_us;
};

class ThreadPoolTest : public ::testing::TestWithParam<Team> {};

TEST_P(ThreadPoolTest, EveryIndexIsDoneExactlyOnce) {
  ThreadPool pool(GetParam().threads, GetParam().spin_us);
  EXPECT_EQ(pool.threads(), GetParam().threads);
  for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t grain : {0, 1, 3, 64, 5000}) {
      // Plain integers: the pool must order them before its caller goes on.
      std::vector<int> done(n, 0);
      pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
        EXPECT_LT(begin, end);
        EXPECT_LE(end, n);
        EXPECT_EQ(begin % std::max<int64_t>(grain, 1), 0);
        for (int64_t i = begin; i < end; ++i) ++done[i];
      });
      EXPECT_EQ(std::count(done.begin(), done.end(), 1), n);
    }
  }
}

// Each loop's body and data die with it. A helper that is still inside the
// loop before would write to the wrong one.
TEST_P(ThreadPoolTest, LoopsFollowEachOtherWithoutMixing) {
  ThreadPool pool(GetParam().threads, GetParam().spin_us);
  for (int loop = 0; loop < 3000; ++loop) {
    const int64_t n = 2 + loop % 5;
    auto seen = std::make_unique<std::vector<int>>(n, -1);
    pool.ParallelFor(n, 1, [&seen, loop](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*seen)[i] = loop;
    });
    ASSERT_EQ(std::count(seen->begin(), seen->end(), loop), n) << loop;
  }
}

TEST_P(ThreadPoolTest, HelpersThatSleepAreWokenOrLeftAlone) {
  ThreadPool pool(GetParam().threads, GetParam().spin_us);
  for (int loop = 0; loop < 50; ++loop) {
    // Let helpers fall asleep at different points.
    for (int i = 0; i < loop % 7 * 20; ++i) std::this_thread::yield();
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum += i;
    });
    ASSERT_EQ(sum, 4950);
  }
}

TEST_P(ThreadPoolTest, StopsWhetherItWorkedOrNot) {
  for (int i = 0; i < 20; ++i) {
    ThreadPool idle(GetParam().threads, GetParam().spin_us);
    ThreadPool busy(GetParam().threads, GetParam().spin_us);
    std::atomic<int64_t> done{0};
    busy.ParallelFor(
        8, 1, [&](int64_t begin, int64_t end) { done += end - begin; });
    EXPECT_EQ(done, 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Teams,
                         ThreadPoolTest,
                         ::testing::Values(Team{1, 50},
                                           Team{2, 50},
                                           Team{3, 0},
                                           Team{4, 5},
                                           Team{16, 0},
                                           Team{9, 50}));

// The helpers do take part: two bodies that wait for each other only end when
// two threads run them.
TEST(ThreadPoolTest, TwoThreadsRunTwoPiecesAtOnce) {
  for (int32_t spin_us : {0, 50}) {
    ThreadPool pool(2, spin_us);
    std::atomic<int> inside{0};
    pool.ParallelFor(2, 1, [&](int64_t, int64_t) {
      ++inside;
      while (inside < 2) std::this_thread::yield();
    });
    EXPECT_EQ(inside, 2);
  }
}

TEST(ThreadPoolTest, AtLeastOneCoreIsAvailable) {
  EXPECT_GE(AvailableCores(), 1);
}

}  // namespace
}  // namespace conclave
