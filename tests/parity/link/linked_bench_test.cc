// SPDX-License-Identifier: Apache-2.0
// What `conclave bench decode --over nccl` measures, over the twins of links.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/cli/served_steps.h"
#include "tests/parity/link/linked_cluster.h"
#include "tests/testing/form.h"

namespace conclave::testing {
namespace {

using ::testing::HasSubstr;

class LinkedBench : public ::testing::Test {
 protected:
  void SetUp() override {
    CONCLAVE_REQUIRE_FORM(kTwinForm);
    ASSERT_NO_FATAL_FAILURE(cluster_.StartCluster());
    const absl::Status ready = cluster_.WaitReady();
    ASSERT_TRUE(ready.ok()) << ready;
    experts::LinkedOptions options = cluster_.Options();
    options.metrics = &metrics_;
    ASSERT_NO_FATAL_FAILURE(cluster_.MakeRunner(std::move(options)));
  }
  absl::StatusOr<cli::ServedFigures> Measure() {
    return cli::MeasureServed(&cluster_.runner->decoder(), options_);
  }

  Metrics metrics_;
  LinkedCluster cluster_{{.name = "bench"}};
  cli::ServedOptions options_ = {.batches = {1, 4},
                                 .context = 9,
                                 .steps = 2,
                                 .repeats = 1,
                                 .chunk_rows = 64,
                                 .vocab = TinyModel().config().vocab_size,
                                 .clock = RealClock(),
                                 .metrics = &metrics_};
};

// Both workers hold experts of every layer: each is sent every row with what
// the router chose, and sends a sum of each.
TEST_F(LinkedBench, CountsWhatTravelsInAStep) {
  const auto got = Measure();
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_EQ(got->batches.size(), 2u);
  const checkpoint::ModelConfig& model = TinyModel().config();
  const double row = 4.0 * model.hidden_size;
  const double choices = 8.0 * (model.num_experts_per_tok + 1);
  for (const cli::ServedBatch& f : got->batches) {
    const double exchanges = 2.0 * model.num_hidden_layers * f.batch;
    EXPECT_DOUBLE_EQ(f.sent_bytes, exchanges * (row + choices)) << f.batch;
    EXPECT_DOUBLE_EQ(f.received_bytes, exchanges * row) << f.batch;
    EXPECT_GT(f.step_s, 0);
    EXPECT_GE(f.tail_s, f.step_s);
  }
  EXPECT_EQ(got->prompts, 4);
  EXPECT_GT(got->prompt_tokens_s, 0);
}

// The same steps by frames go on with the same tokens.
TEST_F(LinkedBench, ComputesWhatFramesCompute) {
  const auto got = Measure();
  ASSERT_TRUE(got.ok()) << got.status();
  LinkedCluster framed({.name = "frames", .over_grpc = true});
  ASSERT_NO_FATAL_FAILURE(framed.Up());
  const auto want = cli::MeasureServed(&framed.runner->decoder(), options_);
  ASSERT_TRUE(want.ok()) << want.status();
  const std::vector<int32_t>& four = want->batches[1].tokens;
  ASSERT_EQ(four.size(), 4u);
  EXPECT_GT((std::set<int32_t>(four.begin(), four.end()).size()), 1u);
  for (size_t i = 0; i < options_.batches.size(); ++i) {
    EXPECT_EQ(got->batches[i].tokens, want->batches[i].tokens) << i;
  }
}

TEST_F(LinkedBench, NamesAWorkerThatIsLost) {
  options_.tell = [this](const std::string& what) {
    if (what == "batch 4") cluster_.workers[1] = nullptr;
  };
  const absl::Status status = Measure().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("batch 4: worker w1 ("));
}

}  // namespace
}  // namespace conclave::testing
