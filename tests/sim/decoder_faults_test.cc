// SPDX-License-Identifier: Apache-2.0

// A worker that falls silent in the middle of a reply: the step fails, the
// decoder lives on, and a new sequence in the same state slot is right. With
// one micro-batch and with two, whichever of them is left without an answer.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
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

// The decoder over two workers whose replies do what a test says, and the same
// in one process.
struct DecoderFaults : ::testing::Test {
  explicit DecoderFaults(const model::MicroBatchSettings& micro_batches = {})
      : config(testing::Workers({1, 1})),
        pool(1),
        transport(&clock),
        cluster(config, kBackend, &pool),
        reference(kBackend, config, 1) {
    for (int32_t i = 0; i < 2; ++i) {
      transport.AddWorker(
          WorkerId{i}, config.workers(i).name(), cluster.handler(i));
    }
    experts::RemoteOptions options = cluster.remote_options();
    options.transport = &transport;
    options.clock = &clock;
    remote = *experts::RemoteExperts::Create(std::move(options));
    runner = std::make_unique<ModelRunner>(testing::TinyModel(),
                                           remote.get(),
                                           kBackend,
                                           &pool,
                                           kernels::Activations::kF32,
                                           0,
                                           std::vector<bool>{},
                                           kernels::GdnDType::kF32,
                                           micro_batches);
  }

  const v1::ClusterConfig config;
  ThreadPool pool;
  testing::SimulatedClock clock;
  testing::ScriptedTransport transport;
  testing::MemoryCluster cluster;
  std::unique_ptr<experts::RemoteExperts> remote;
  std::unique_ptr<ModelRunner> runner;
  testing::SingleProcess reference;
};

TEST_F(DecoderFaults, AFailedStepLeavesNoTrace) {
  const auto& prompt = testing::FindGolden("story");
  ModelRunner::Sequence wanted = reference.runner->Open(0);
  const auto want = reference.runner->Prefill(&wanted, prompt.ids);
  ASSERT_TRUE(want.ok()) << want.status();

  ModelRunner::Sequence sequence = runner->Open(0);
  ASSERT_TRUE(runner->Prefill(&sequence, prompt.ids).ok());
  // The next reply of w1 belongs to layer 0 of the first decode step, or to
  // the first layer whose router chooses one of its experts.
  transport.OnNextReply(WorkerId{1}, [](Buffer) {});
  absl::Status status;
  for (int32_t i = 0; i < 4 && status.ok(); ++i) {
    status =
        runner
            ->Step({{.sequence = &sequence, .tokens = {prompt.greedy_ids[i]}}})
            .status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("worker w1: exchange, layer "));

  ModelRunner::Sequence again = runner->Open(0);
  const auto got = runner->Prefill(&again, prompt.ids);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, *want);
}

struct MicroBatchDecoderFaults : DecoderFaults {
  MicroBatchDecoderFaults() : DecoderFaults({.count = 2, .clock = &clock}) {}

  // Both prompts in one step, logits of both.
  static absl::StatusOr<std::vector<std::vector<float>>> Prompts(
      ModelRunner* runner) {
    ModelRunner::Sequence a = runner->Open(0), b = runner->Open(1);
    return runner->Step({{.sequence = &a,
                          .tokens = testing::FindGolden("story").ids,
                          .prefill = true},
                         {.sequence = &b,
                          .tokens = testing::FindGolden("len65").ids,
                          .prefill = true}});
  }
};

// w1's n-th reply of the step is lost: of either micro-batch, in the first
// layers and in the last.
TEST_F(MicroBatchDecoderFaults, AFailedStepLeavesNoTrace) {
  const auto want = Prompts(reference.runner.get());
  ASSERT_TRUE(want.ok()) << want.status();
  for (const int32_t lost : {0, 1, 2, 5, 14, 15}) {
    SCOPED_TRACE(lost);
    for (int32_t i = 0; i < lost; ++i) {
      transport.OnNextReply(WorkerId{1}, [this](Buffer reply) {
        transport.Deliver(WorkerId{1}, std::move(reply));
      });
    }
    transport.OnNextReply(WorkerId{1}, [](Buffer) {});
    const auto failed = Prompts(runner.get());
    EXPECT_EQ(failed.status().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(
        std::string(failed.status().message()),
        HasSubstr(absl::StrCat("worker w1: exchange, layer ", lost / 2, ": ")));
    const auto got = Prompts(runner.get());
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(*got, *want);
  }
}

// Replies to the later micro-batch overtake those to the earlier one.
TEST_F(MicroBatchDecoderFaults, TheOrderOfRepliesChangesNoBit) {
  const auto want = Prompts(reference.runner.get());
  ASSERT_TRUE(want.ok()) << want.status();
  for (int32_t i = 0; i < 16; ++i) {
    transport.OnNextReply(WorkerId{i % 2}, [this, i](Buffer reply) {
      transport.Deliver(
          WorkerId{i % 2}, std::move(reply), absl::Milliseconds(i * 7 % 11));
    });
  }
  for (const bool newest_first : {false, true}) {
    transport.set_newest_first(newest_first);
    const auto got = Prompts(runner.get());
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(*got, *want);
  }
}

}  // namespace
}  // namespace conclave
