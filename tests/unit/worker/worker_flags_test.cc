// SPDX-License-Identifier: Apache-2.0
#include "worker/cli/worker_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "kernels/device.h"

ABSL_DECLARE_FLAG(std::string, listen);
ABSL_DECLARE_FLAG(std::string, backend);
ABSL_DECLARE_FLAG(int32_t, gpu);

namespace conclave::worker {
namespace {

using kernels::Backend;
using ::testing::HasSubstr;

class WorkerFlagsTest : public ::testing::Test {
 protected:
  WorkerFlagsTest() { absl::SetFlag(&FLAGS_listen, "127.0.0.1:7001"); }
  absl::FlagSaver saver_;
};

TEST_F(WorkerFlagsTest, HelpNamesTheBackend) {
  EXPECT_THAT(kUsage, HasSubstr("--backend B"));
  EXPECT_THAT(kUsage, HasSubstr("--gpu N"));
}

TEST_F(WorkerFlagsTest, TheCpuIsTakenWhereItIsAskedFor) {
  absl::SetFlag(&FLAGS_backend, "cpu");
  EXPECT_EQ(OptionsFromFlags()->backend, Backend::kCpu);
  absl::SetFlag(&FLAGS_backend, "cpu-plain");
  EXPECT_EQ(OptionsFromFlags()->backend, Backend::kCpuPlain);
}

TEST_F(WorkerFlagsTest, CudaInsistsAndAutoDoesNot) {
  const auto gpus = kernels::ListCudaDevices();
  if (gpus.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(OptionsFromFlags()->backend, Backend::kCpu);
  absl::SetFlag(&FLAGS_backend, "cuda");
  const absl::Status status = OptionsFromFlags().status();
  EXPECT_EQ(status.code(), gpus.status().code());
  EXPECT_THAT(std::string(status.message()), HasSubstr("--backend cuda: "));
}

TEST_F(WorkerFlagsTest, OtherWordsAreRefused) {
  absl::SetFlag(&FLAGS_backend, "metal");
  const absl::Status status = OptionsFromFlags().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("--backend 'metal': auto, cuda, cpu or cpu-plain"));
}

}  // namespace
}  // namespace conclave::worker
