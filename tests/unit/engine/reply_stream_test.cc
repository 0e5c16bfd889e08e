// SPDX-License-Identifier: Apache-2.0
#include "coordinator/reply_stream.h"

#include <gtest/gtest.h>

#include "coordinator/stop_filter.h"
#include "tests/testing/seeded.h"

namespace conclave {
namespace {

TEST(StopFilter, HoldsBackNoMoreThanItMust) {
  StopFilter filter({"END", "\n\n"});
  EXPECT_EQ(filter.Push("one E"), "one ");
  EXPECT_EQ(filter.Push("N"), "");
  EXPECT_EQ(filter.Push("ter\n"), "ENter");
  EXPECT_EQ(filter.Push("x E"), "\nx ");
  EXPECT_EQ(filter.Push("ND y"), "");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.Push("more"), "");
}

TEST(StopFilter, FlushesAtTheEnd) {
  StopFilter filter({"stop"});
  EXPECT_EQ(filter.Push("full sto"), "full ");
  EXPECT_EQ(filter.Finish(), "sto");
  EXPECT_FALSE(filter.stopped());
}

TEST(StopFilter, CuttingDoesNotMatter) {
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    testing::Seeded random(seed);
    std::string text;
    for (int i = 0; i < 60; ++i) text += "ab"[random.Int(2)];
    const std::string stop = text.substr(random.Int(50), 4 + random.Int(5));
    StopFilter filter({stop});
    std::string got;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + random.Int(7);
      got += filter.Push(text.substr(at, n));
      at += n;
    }
    EXPECT_TRUE(filter.stopped());
    EXPECT_EQ(got, text.substr(0, text.find(stop)));
  }
}

}  // namespace
}  // namespace conclave
