// SPDX-License-Identifier: Apache-2.0

// A worker that falls silent in the middle of a reply: the step fails, the
// decoder lives on, and a new sequence in the same state slot is right.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "coordinator/experts/remote_experts.h"
#include "tests/testing/golden.h"
#include "tests/testing/memory_cluster.h"
#include "tests/testing/model_runner.h"
#include "tests/testing/scripted_transport.h"
#include "tests/testing/single_process.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using testing::ModelRunner;

constexpr kernels::Backend kBackend = kernels::Backend::kCpu;

TEST(DecoderFaults, AFailedStepLeavesNoTrace) {
  const v1::ClusterConfig config = testing::Workers({1, 1});
  ThreadPool pool(1);
  testing::SimulatedClock clock;
  testing::ScriptedTransport transport(&clock);
  testing::MemoryCluster cluster(config, kBackend, &pool);
  for (int32_t i = 0; i < 2; ++i) {
    transport.AddWorker(
        WorkerId{i}, config.workers(i).name(), cluster.handler(i));
  }
  experts::RemoteOptions options = cluster.remote_options();
  options.transport = &transport;
  options.clock = &clock;
  auto remote = *experts::RemoteExperts::Create(std::move(options));
  ModelRunner runner(testing::TinyModel(), remote.get(), kBackend, &pool);
  testing::SingleProcess reference(kBackend, config, 1);

  const auto& prompt = testing::FindGolden("story");
  ModelRunner::Sequence wanted = reference.runner->Open(0);
  const auto want = reference.runner->Prefill(&wanted, prompt.ids);
  ASSERT_TRUE(want.ok()) << want.status();

  ModelRunner::Sequence sequence = runner.Open(0);
  ASSERT_TRUE(runner.Prefill(&sequence, prompt.ids).ok());
  // The next reply of w1 belongs to layer 0 of the first decode step, or to
  // the first layer whose router chooses one of its experts.
  transport.OnNextReply(WorkerId{1}, [](Buffer) {});
  absl::Status status;
  for (int32_t i = 0; i < 4 && status.ok(); ++i) {
    status =
        runner.Step({{.sequence = &sequence, .tokens = {prompt.greedy_ids[i]}}})
            .status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("worker w1: exchange, layer "));

  ModelRunner::Sequence again = runner.Open(0);
  const auto got = runner.Prefill(&again, prompt.ids);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, *want);
}

}  // namespace
}  // namespace conclave
