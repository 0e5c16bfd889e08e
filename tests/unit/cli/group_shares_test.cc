// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/group_shares.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace conclave::cli {
namespace {

using Shares = std::vector<int32_t>;

constexpr uint64_t kGb = 1'000'000'000;

// 16 units of 13 GB, as 397B in 4 bits has them.
ShareNeeds Large(uint64_t cache) {
  return {.units = 16,
          .unit_bytes = 13 * kGb,
          .free = {140 * kGb, 140 * kGb},
          .rest = {10 * kGb, 3 * kGb},
          .cache = cache};
}

TEST(SharesByMemory, GpusEndUpEquallyFull) {
  // 7 GB more on rank 0, then 33, then 59: none, one, two units.
  EXPECT_EQ(SharesByMemory(Large(0)), (Shares{8, 8}));
  EXPECT_EQ(SharesByMemory(Large(20 * kGb)), (Shares{7, 9}));
  EXPECT_EQ(SharesByMemory(Large(46 * kGb)), (Shares{6, 10}));
}

TEST(SharesByMemory, ALargerGpuHoldsMore) {
  ShareNeeds needs = Large(0);
  needs.free[1] = 192 * kGb;
  EXPECT_EQ(SharesByMemory(needs), (Shares{6, 10}));
}

TEST(SharesByMemory, AllUnitsAreGivenOutAndNobodyHasNone) {
  for (uint64_t cache : {0, 30, 100, 1000}) {
    for (int32_t units = 3; units < 40; ++units) {
      ShareNeeds needs{.units = units,
                       .unit_bytes = 2 * kGb,
                       .free = {80 * kGb, 10 * kGb, 80 * kGb},
                       .rest = {8 * kGb, 2 * kGb, 2 * kGb},
                       .cache = cache * kGb};
      const Shares shares = SharesByMemory(needs);
      ASSERT_EQ(shares.size(), 3u);
      EXPECT_EQ(std::accumulate(shares.begin(), shares.end(), 0), units);
      for (const int32_t share : shares) EXPECT_GE(share, 1);
    }
  }
}

// Whatever the cache is, rank 0 has it as long as the others hold the rest.
TEST(SharesByMemory, TheCacheIsNotStarved) {
  for (uint64_t cache = 0; cache <= 117; ++cache) {
    ShareNeeds needs = Large(cache * kGb);
    needs.units = 10;
    const Shares shares = SharesByMemory(needs);
    EXPECT_LE(needs.rest[0] + needs.cache + shares[0] * needs.unit_bytes,
              needs.free[0])
        << cache;
    EXPECT_LE(needs.rest[1] + shares[1] * needs.unit_bytes, needs.free[1]);
  }
}

TEST(DescribeShares, NamesEachRankWhereTheyDiffer) {
  const std::vector<std::string> gpus = {"GPU 0 (H200)", "GPU 1 (H200)"};
  EXPECT_EQ(DescribeShares(gpus, {512, 512}), "");
  EXPECT_EQ(DescribeShares({"GPU 0 (H200)"}, {1024}), "");
  EXPECT_EQ(DescribeShares(gpus, {448, 576}),
            "of 1024 columns of each expert: 448 on rank 0 (GPU 0 (H200)), "
            "576 on rank 1 (GPU 1 (H200))\n");
}

}  // namespace
}  // namespace conclave::cli
