// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_over.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/config/cluster_config.h"

namespace conclave::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::ClusterConfig TwoWorkers() {
  v1::ClusterConfig config = config::DefaultClusterConfig();
  config.set_model("model");
  for (const char* name : {"w0", "w1"}) {
    v1::Worker* worker = config.add_workers();
    worker->set_name(name);
    worker->set_share(1);
    worker->set_address("127.0.0.1:7101");
  }
  config.mutable_workers(1)->set_address("127.0.0.1:7102");
  config.mutable_placement()->set_shards(4);
  return config;
}

std::string Says(const absl::Status& status) {
  return std::string(status.message());
}

TEST(Ways, ComeFromTheFlagElseFromTheFile) {
  v1::ClusterConfig config = TwoWorkers();
  EXPECT_THAT(*ParseWays("nccl,local,grpc", config),
              ElementsAre("nccl", "local", "grpc"));
  EXPECT_THAT(*ParseWays("", config), ElementsAre("grpc"));
  config.mutable_exchange()->set_over("nccl");
  EXPECT_THAT(*ParseWays("", config), ElementsAre("nccl"));
  config.clear_workers();
  EXPECT_THAT(*ParseWays("", config), ElementsAre("local"));
  EXPECT_THAT(*ParseWays("local", config), ElementsAre("local"));
  EXPECT_THAT(Says(ParseWays("local,nccl", config).status()),
              HasSubstr("--over nccl: needs workers; give --config"));
  for (const char* wrong : {"tcp", "grpc,", "grpc,grpc"}) {
    EXPECT_THAT(Says(ParseWays(wrong, TwoWorkers()).status()),
                HasSubstr("local, grpc and nccl, each once"))
        << wrong;
  }
}

TEST(Ways, OfOneFileDifferInWhatRowsTravelOver) {
  for (const char* way : {"grpc", "nccl"}) {
    const auto config = ConfigOver(TwoWorkers(), way);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->exchange().over(), way);
    EXPECT_EQ(config->workers_size(), 2);
    EXPECT_EQ(config->placement().shards(), 4);
  }
}

TEST(Ways, LocalIsWithoutWorkersAndTheirPlacement) {
  v1::ClusterConfig file = TwoWorkers();
  file.mutable_exchange()->set_over("nccl");
  const auto config = ConfigOver(file, "local");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->workers_size(), 0);
  EXPECT_EQ(config->placement().shards(), 0);
  EXPECT_EQ(config->placement().split(), "experts");
  EXPECT_EQ(config->exchange().over(), "grpc");
}

TEST(Ways, OverNcclAreNotEncrypted) {
  v1::ClusterConfig config = TwoWorkers();
  config.mutable_workers(1)->set_address("192.168.1.2:7101");
  config.mutable_tls()->set_ca("ca");
  config.mutable_tls()->set_cert("cert");
  config.mutable_tls()->set_key("key");
  EXPECT_TRUE(ConfigOver(config, "grpc").ok());
  EXPECT_THAT(Says(ConfigOver(config, "nccl").status()),
              HasSubstr("worker 'w1'"));
  config.set_insecure(true);
  EXPECT_TRUE(ConfigOver(config, "nccl").ok());
}

}  // namespace
}  // namespace conclave::cli
