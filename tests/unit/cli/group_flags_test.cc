// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/group_flags.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace conclave::cli {
namespace {

using Gpus = std::vector<int32_t>;

TEST(GroupFlags, SayWhichGpusOrHowMany) {
  EXPECT_EQ(*ParseGpus(""), Gpus{});
  EXPECT_EQ(*ParseGpus("2"), (Gpus{0, 1}));
  EXPECT_EQ(*ParseGpus("3,1"), (Gpus{3, 1}));
  for (const std::string bad :
       {"0", "9", "1,1", "a", "0,-1", "0,", "1000000"}) {
    EXPECT_EQ(ParseGpus(bad).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

TEST(GroupFlags, SharesArePositiveNumbers) {
  EXPECT_EQ(*ParseShares(""), std::vector<int32_t>{});
  EXPECT_EQ(*ParseShares("2,3,1000"), (std::vector<int32_t>{2, 3, 1000}));
  for (const std::string bad : {"0,1", "1,-1", "1,", "a", "1,1001", "0.5,1"}) {
    const auto shares = ParseShares(bad);
    EXPECT_EQ(shares.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(shares.status().message().find("--group-shares: \"" + bad),
              std::string::npos)
        << shares.status();
  }
}

TEST(GroupFlags, KnowTheirWords) {
  EXPECT_EQ(*ParseForm(""), model::GroupForm::kSymmetric);
  EXPECT_EQ(*ParseForm("lone"), model::GroupForm::kLone);
  EXPECT_FALSE(ParseForm("both").ok());
  EXPECT_EQ(*ParseExchange(""), kernels::GroupExchange::kPeer);
  EXPECT_EQ(*ParseExchange("nccl"), kernels::GroupExchange::kNccl);
  EXPECT_FALSE(ParseExchange("mpi").ok());
}

}  // namespace
}  // namespace conclave::cli
