// SPDX-License-Identifier: Apache-2.0
// What the repository shows to others must be readable by the programs.

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "common/config/cluster_config.h"

namespace conclave::config {
namespace {

constexpr char kFolder[] = "deploy/config";

TEST(Examples, EveryFileParsesAndMayBind) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".yaml") continue;
    ++files;
    auto config = LoadClusterConfig(entry.path().string());
    ASSERT_TRUE(config.ok()) << config.status();
    if (!config->coordinator().api_key_file().empty()) {
      config->mutable_coordinator()->set_api_key("what the file would hold");
    }
    EXPECT_TRUE(CheckHttpBind(*config).ok()) << CheckHttpBind(*config);
    for (const v1::Worker& worker : config->workers()) {
      EXPECT_TRUE(CheckWorkerBind(*config, worker).ok());
    }
  }
  EXPECT_GE(files, 2);
}

TEST(Examples, QuickstartClusterUsesTheEmbeddedModel) {
  const auto config = LoadClusterConfig("deploy/config/two-workers.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model(), "deploy/models/qwen3.5-moe-tiny");
  EXPECT_TRUE(std::filesystem::exists(config->model() + "/config.json"));
  EXPECT_EQ(config->coordinator().listen(), "127.0.0.1:8080");
  EXPECT_EQ(config->coordinator().served_model_name(), "qwen3.5-moe-tiny");
  ASSERT_EQ(config->workers_size(), 2);
  EXPECT_EQ(config->workers(0).address(), "127.0.0.1:7101");
  EXPECT_EQ(config->workers(1).address(), "127.0.0.1:7102");
}

}  // namespace
}  // namespace conclave::config
