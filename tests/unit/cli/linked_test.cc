// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/linked.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/config/cluster_config.h"
#include "coordinator/cli/deployment.h"
#include "coordinator/cluster/placement.h"
#include "tests/testing/golden.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;
using testing::TinyModel;

v1::ClusterConfig OverNccl() {
  v1::ClusterConfig config = config::DefaultClusterConfig();
  config.set_model(TinyModel().folder());
  config.mutable_exchange()->set_over("nccl");
  for (const char* name : {"w0", "w1"}) {
    v1::Worker* worker = config.add_workers();
    worker->set_name(name);
    worker->set_address("127.0.0.1:1");
    worker->set_share(1);
  }
  return config;
}

TEST(Linked, NeedsAGpuOnTheCoordinatorBeforeAnythingIsLoaded) {
  const auto made = Deployment::Create(OverNccl(),
                                       {.backend = kernels::Backend::kCpu,
                                        .clock = RealClock(),
                                        .show_progress = false});
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(made.status().message()),
              HasSubstr("exchange.over: nccl needs a GPU on the coordinator"));
  v1::ClusterConfig over_grpc = OverNccl();
  over_grpc.mutable_exchange()->set_over("grpc");
  EXPECT_FALSE(IsLinked(over_grpc));
  EXPECT_TRUE(CheckLinked(over_grpc, kernels::Backend::kCpu).ok());
  EXPECT_TRUE(CheckLinked(OverNccl(), kernels::Backend::kCuda).ok());
}

TEST(Linked, RowsOfAStepAreCountedBeforeTheyAreAllocated) {
  const checkpoint::ModelConfig& model = TinyModel().config();
  const auto placement =
      cluster::MakePlacement(OverNccl(), model.expert_shape());
  ASSERT_TRUE(placement.ok()) << placement.status();
  const experts::LinkedOptions options =
      LinkedOptionsOf(OverNccl(),
                      *placement,
                      model,
                      {},
                      {.state_slots = 8, .step_rows = 64},
                      kernels::Activations::kInt8);
  EXPECT_EQ(options.rows_max, 64 + 4);
  EXPECT_EQ(options.per_row, model.num_experts_per_tok + 1);
  EXPECT_FALSE(options.exact);
  const auto bytes = experts::LinkedExperts::BytesOf(options);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  // A plane for each of two shards, and one for the shared expert.
  EXPECT_GT(*bytes, uint64_t{3} * 68 * model.hidden_size * sizeof(float));
  EXPECT_LT(*bytes, uint64_t{4} * 68 * model.hidden_size * sizeof(float));
}

}  // namespace
}  // namespace conclave::cli
