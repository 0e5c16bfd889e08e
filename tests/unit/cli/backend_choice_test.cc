// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/backend_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/config/cluster_config.h"

namespace conclave::cli {
namespace {

using kernels::Backend;
using kernels::CudaDevice;
using ::testing::HasSubstr;

v1::ClusterConfig Parse(const std::string& yaml) {
  auto config = config::ParseClusterConfig(yaml, "test.yaml");
  EXPECT_TRUE(config.ok()) << config.status();
  return *std::move(config);
}

constexpr char kWorkers[] =
    "\nworkers:\n  - name: w0\n    address: 127.0.0.1:7000\n";

absl::StatusOr<std::vector<CudaDevice>> TwoGpus(std::optional<int32_t>) {
  return std::vector<CudaDevice>{{.name = "H100",
                                  .compute_major = 9,
                                  .compute_minor = 0,
                                  .memory_total_bytes = 80'000'000'000,
                                  .memory_free_bytes = 79'000'000'000},
                                 {.name = "T4",
                                  .compute_major = 7,
                                  .compute_minor = 5,
                                  .memory_total_bytes = 16'000'000'000,
                                  .memory_free_bytes = 15'000'000'000}};
}

absl::StatusOr<std::vector<CudaDevice>> NoDriver(std::optional<int32_t>) {
  return absl::UnavailableError("CUDA: listing devices: no driver");
}

absl::StatusOr<std::vector<CudaDevice>> NotAsked(std::optional<int32_t>) {
  ADD_FAILURE() << "no GPU comes into question";
  return NoDriver({});
}

TEST(BackendChoice, AutoTakesTheGpu) {
  const auto choice = ChooseBackend(Parse(""), TwoGpus);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->backend, Backend::kCuda);
  EXPECT_EQ(choice->line, "computing on GPU 0 (H100), 79.0 GB free");
  EXPECT_EQ(
      ChooseBackend(Parse("coordinator: {backend: cuda}"), TwoGpus)->backend,
      Backend::kCuda);
  EXPECT_EQ(ChooseBackend(Parse(kWorkers), TwoGpus)->backend, Backend::kCuda);
}

TEST(BackendChoice, AutoSaysWhyItTakesTheCpu) {
  const struct {
    std::string yaml;
    ListGpusFn list;
    const char* line;
  } kCases[] = {
      {"", NoDriver, "computing on the CPU: CUDA: listing devices: no driver"},
      {"coordinator: {gpu: 1}",
       TwoGpus,
       "computing on the CPU: GPU 1 (T4) has compute capability 7.5, needed "
       "is 8.0"},
  };
  for (const auto& c : kCases) {
    const auto choice = ChooseBackend(Parse(c.yaml), c.list);
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_EQ(choice->backend, Backend::kCpu) << c.line;
    EXPECT_EQ(choice->line, c.line);
  }
}

TEST(BackendChoice, WhatIsAskedForIsTakenOrRefused) {
  for (const std::string yaml :
       {"coordinator: {backend: cpu}", "coordinator: {backend: cpu-plain}"}) {
    const auto choice = ChooseBackend(Parse(yaml), NotAsked);
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_NE(choice->backend, Backend::kCuda);
    EXPECT_EQ(choice->line, "");
  }
  const std::string cuda = "coordinator: {backend: cuda";
  const struct {
    std::string yaml;
    ListGpusFn list;
    absl::StatusCode code;
    const char* message;
  } kCases[] = {
      {cuda + "}",
       NoDriver,
       absl::StatusCode::kUnavailable,
       "coordinator.backend: cuda: CUDA: listing devices: no driver"},
      {cuda + ", gpu: 1}",
       TwoGpus,
       absl::StatusCode::kFailedPrecondition,
       "GPU 1 (T4) has compute capability 7.5"},
      {cuda + ", gpu: 2}",
       TwoGpus,
       absl::StatusCode::kInvalidArgument,
       "there is no GPU 2 here, only 0 (H100), 1 (T4)"},
      {"coordinator: {gpu: 2}",
       TwoGpus,
       absl::StatusCode::kInvalidArgument,
       "there is no GPU 2 here, only 0 (H100), 1 (T4)"},
  };
  for (const auto& c : kCases) {
    const absl::Status status = ChooseBackend(Parse(c.yaml), c.list).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace conclave::cli
