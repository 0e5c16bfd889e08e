// SPDX-License-Identifier: Apache-2.0
// A coordinator and workers whose rows travel over a link, through the control
// plane of production: the tokens and logits of frames, and faults in the
// middle of a step.
#include "tests/parity/link/linked_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/transport/wire.h"
#include "coordinator/experts/link_failure.h"
#include "coordinator/experts/link_layers.h"
#include "tests/parity/model/tolerances.h"
#include "tests/testing/form.h"
#include "tests/testing/seeded.h"
#include "tests/testing/simulated_clock.h"

namespace conclave::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Setting = LinkedCluster::Setting;

// Logits of a prefill of two sequences in one step, then of steps that decode
// both, one, and both.
std::vector<std::vector<float>> AllLogits(ModelRunner* runner) {
  std::vector<std::vector<float>> out;
  const auto& story = FindGolden("story");
  const auto& sums = FindGolden("len65");
  ModelRunner::Sequence a = runner->Open(0), b = runner->Open(1);
  const auto add = [&](std::vector<ModelRunner::Feed> feeds) {
    auto logits = runner->Step(std::move(feeds));
    ASSERT_TRUE(logits.ok()) << logits.status();
    for (auto& one : *logits) out.push_back(std::move(one));
  };
  add({{.sequence = &a, .tokens = story.ids, .prefill = true},
       {.sequence = &b, .tokens = sums.ids, .prefill = true}});
  for (int32_t i = 0; i < 3; ++i) {
    add({{.sequence = &a, .tokens = {story.greedy_ids[i]}},
         {.sequence = &b, .tokens = {sums.greedy_ids[i]}}});
    add({{.sequence = &a, .tokens = {sums.greedy_ids[i]}}});
  }
  return out;
}

void ExpectGolden(ModelRunner* runner, const std::string& name) {
  const std::vector<int32_t> want = FindGolden(name).greedy_until_eos();
  const auto got =
      runner->Greedy(FindGolden(name).ids, static_cast<int32_t>(want.size()));
  ASSERT_TRUE(got.ok()) << name << ": " << got.status();
  EXPECT_EQ(*got, want) << name;
}

std::vector<Setting> Settings() {
  return {{.name = "one_worker", .shares = {1}},
          {.name = "two_workers", .shares = {1, 1}},
          {.name = "three_uneven", .shares = {1, 2, 4}},
          {.name = "two_columns", .shares = {1, 1}, .columns = true},
          {.name = "seven_shards", .shares = {2, 1}, .shards = 7},
          {.name = "some_layers", .shares = {1, 1}, .own = {0, 1, 3, 6}},
          {.name = "bf16", .shares = {1, 1}, .activations = "int8"}};
}

class LinkedWorkers : public ::testing::TestWithParam<Setting> {
 protected:
  void SetUp() override { CONCLAVE_REQUIRE_FORM(kTwinForm); }
};

INSTANTIATE_TEST_SUITE_P(Topologies,
                         LinkedWorkers,
                         ::testing::ValuesIn(Settings()),
                         [](const auto& info) { return info.param.name; });

TEST_P(LinkedWorkers, GiveTheLogitsOfFrames) {
  LinkedCluster linked(GetParam());
  ASSERT_NO_FATAL_FAILURE(linked.Up());
  Setting other = GetParam();
  other.over_grpc = true;
  LinkedCluster framed(other);
  ASSERT_NO_FATAL_FAILURE(framed.Up());
  const auto got = AllLogits(linked.runner.get());
  const auto want = AllLogits(framed.runner.get());
  ASSERT_EQ(got.size(), want.size());
  const bool exact = GetParam().activations == "f32";
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_LE(RelativeError(got[i].data(), want[i].data(), got[i].size()),
              exact ? parity::ToleranceOf(kernels::Backend::kCuda,
                                          parity::WeightFormat::kBF16)
                          .logits
                    : parity::kBf16RowsLogits)
        << i;
  }
  if (!exact) return;
  for (const char* name : {"story", "len65"}) {
    ExpectGolden(linked.runner.get(), name);
  }
}

class LinkFaults : public ::testing::Test {
 protected:
  void SetUp() override {
    CONCLAVE_REQUIRE_FORM(kTwinForm);
    linked_ = std::make_unique<LinkedCluster>(Setting{.name = "faults"});
  }
  ModelRunner* runner() { return linked_->runner.get(); }
  absl::Status Prefill(model::Probe* probe = nullptr) {
    auto sequence = runner()->Open(0);
    return runner()
        ->Step({{.sequence = &sequence,
                 .tokens = FindGolden("story").ids,
                 .prefill = true}},
               probe)
        .status();
  }
  std::unique_ptr<LinkedCluster> linked_;
};

// Does something after a layer, in the middle of the step.
class AfterLayer final : public model::Probe {
 public:
  AfterLayer(int32_t layer, std::function<void()> what)
      : layer_(layer), what_(std::move(what)) {}
  void Hidden(int32_t, std::span<const float>) override {}
  void Routed(int32_t layer, const experts::Routing&) override {
    if (layer == layer_) what_();
  }

 private:
  const int32_t layer_;
  const std::function<void()> what_;
};

TEST_F(LinkFaults, AWorkerThatDiesIsNamedAndTakesPartAgain) {
  ASSERT_NO_FATAL_FAILURE(linked_->Up());
  ExpectGolden(runner(), "story");
  AfterLayer dies(3, [this] { linked_->workers[1] = nullptr; });
  const absl::Status status = Prefill(&dies);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("worker w1 ("));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("exchange over NCCL, layer 4: "));
  EXPECT_TRUE(runner()->decoder().Health().ok());
  // As long as it is away it is missed by name, and at once.
  EXPECT_THAT(std::string(Prefill().message()), HasSubstr("worker w1 ("));
  ASSERT_NO_FATAL_FAILURE(linked_->Replace(1));
  ExpectGolden(runner(), "story");
}

// Tokens chosen in recorded steps, which hold exchanges of the link; they are
// recorded anew over the next one.
TEST_F(LinkFaults, RecordedStepsOutliveALink) {
  ASSERT_NO_FATAL_FAILURE(linked_->Up());
  const auto sampler =
      runner()->decoder().MakeSampler(TinyModel().config().vocab_size);
  ASSERT_TRUE(sampler.ok()) << sampler.status();
  const GoldenPrompt& story = FindGolden("story");
  const auto next = [&](ModelRunner::Sequence* sequence, int32_t token) {
    const kernels::SequenceRows rows{
        .rows = 1,
        .position = sequence->position++,
        .cells = {},
        .state_slot_in = sequence->slot,
        .state_slots_out = std::span<const int32_t>(&sequence->slot, 1),
        .kv_blocks = sequence->blocks};
    const kernels::DeviceSampling greedy;
    int32_t out = -1;
    absl::Status status =
        (*sampler)->Run({{&rows, 1}, 1}, {&token, 1}, {&greedy, 1}, {&out, 1});
    return status.ok() ? absl::StatusOr<int32_t>(out) : status;
  };
  for (int turn = 0; turn < 2; ++turn) {
    auto sequence = runner()->Open(0);
    const auto prefill = runner()->Prefill(&sequence, story.ids);
    ASSERT_TRUE(prefill.ok()) << prefill.status();
    for (size_t i = 0; i < 4; ++i) {
      const auto token = next(&sequence, story.greedy_ids[i]);
      ASSERT_TRUE(token.ok()) << token.status();
      EXPECT_EQ(*token, story.greedy_ids[i + 1]);
    }
    if (turn > 0) return;
    linked_->workers[0] = nullptr;
    const auto failed = next(&sequence, story.greedy_ids[4]);
    EXPECT_THAT(std::string(failed.status().message()), HasSubstr("worker w0"));
    ASSERT_NO_FATAL_FAILURE(linked_->Replace(0));
  }
}

// Hands step frames to one worker only.
class ForgetfulTransport final : public transport::Transport {
 public:
  explicit ForgetfulTransport(transport::Transport* real) : real_(real) {}
  absl::Status Send(WorkerId to, Buffer frame) override {
    const auto step = transport::DecodeStep(frame.bytes());
    if (step.ok()) begun = step->tag.step;
    if (forgets && to == WorkerId{1}) return absl::OkStatus();
    return real_->Send(to, std::move(frame));
  }
  absl::StatusOr<transport::Delivery> Receive(absl::Time) override {
    return real_->Receive(absl::InfinitePast());
  }
  std::string PeerName(WorkerId worker) const override {
    return real_->PeerName(worker);
  }
  std::atomic<uint64_t> begun = 0;
  std::atomic<bool> forgets = true;

 private:
  transport::Transport* const real_;
};

// A worker that is well but does nothing: the coordinator's deadline, on the
// test's clock, which moves when the other worker has told of its sums.
TEST_F(LinkFaults, AWorkerThatStallsIsNamedByItsLayers) {
  ASSERT_NO_FATAL_FAILURE(linked_->StartCluster());
  ASSERT_TRUE(linked_->WaitReady().ok());
  SimulatedClock clock;
  ForgetfulTransport transport(linked_->cluster->transport());
  experts::LinkedOptions options = linked_->Options();
  options.transport = &transport;
  options.clock = &clock;
  ASSERT_NO_FATAL_FAILURE(linked_->MakeRunner(std::move(options)));
  std::atomic<bool> done = false;
  std::thread time([&] {
    while (!done) {
      const cluster::WorkerState w0 = linked_->cluster->Look(WorkerId{0});
      if (w0.link_step == transport.begun && w0.link_layers > 0) {
        clock.Advance(absl::Seconds(1));
      }
      std::this_thread::yield();
    }
  });
  const absl::Status status = Prefill();
  done = true;
  time.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("worker w1 ("));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("w0")));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("exchange over NCCL, layer 0: no sums within 5s"));
  transport.forgets = false;
  ExpectGolden(runner(), "story");
}

// What a worker answers to a step ends it at once.
TEST_F(LinkFaults, AWorkerThatRefusesTheStepIsHeard) {
  ASSERT_NO_FATAL_FAILURE(linked_->StartCluster());
  ASSERT_TRUE(linked_->WaitReady().ok());
  experts::LinkedOptions options = linked_->Options();
  ++options.generation;
  ASSERT_NO_FATAL_FAILURE(linked_->MakeRunner(std::move(options)));
  const absl::Status status = Prefill();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("exchange over NCCL, layer 0: the worker answers: "
                        "worker w"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("of generation"));
}

TEST_F(LinkFaults, AWorkerOnTheCpuIsRefused) {
  const int port = linked_->workers[1]->port();
  linked_->workers[1] = nullptr;
  linked_->StartWorker(1, port, /*gpu=*/false);
  ASSERT_NO_FATAL_FAILURE(linked_->StartCluster());
  while (linked_->cluster->Look(WorkerId{1}).error.ok()) {
    std::this_thread::yield();
  }
  EXPECT_THAT(std::string(linked_->cluster->Ready().message()),
              HasSubstr("exchange.over: nccl needs a GPU on every worker"));
}

TEST(LinkFailure, NamesWhoIsBehind) {
  const ExpertShape shape{.layers = 2, .experts = 2, .intermediate = 16};
  Placement placement;
  placement.shards.resize(2);
  for (int32_t i = 0; i < 2; ++i) {
    placement.shards[i].id = ShardId{i};
    placement.holder.push_back(WorkerId{i});
    for (int32_t layer = 0; layer < 2; ++layer) {
      placement.shards[i].slices.push_back(
          {LayerId{layer}, ExpertId{i}, 0, 16});
    }
  }
  const auto layers = experts::LinkLayers::Create(placement, shape, {});
  ASSERT_TRUE(layers.ok()) << layers.status();
  std::vector<experts::LinkPeer> peers(2);
  for (experts::LinkPeer& peer : peers) {
    peer.link = 7;
    peer.step = 9;
  }
  const auto say = [&](const experts::LinkFailure& failure) {
    return std::string(
        experts::NameFailure(
            failure,
            *layers,
            [&](WorkerId w) { return peers[static_cast<size_t>(Index(w))]; },
            [](WorkerId w) { return absl::StrCat("w", Index(w)); })
            .message());
  };
  experts::LinkFailure failure{.status = absl::DeadlineExceededError("late"),
                               .lost = std::nullopt,
                               .link = 7,
                               .step = 9,
                               .passed = 3,
                               .deadline = absl::Seconds(5)};
  peers[0].layers = 2;
  peers[1].layers = 1;
  EXPECT_EQ(say(failure),
            "worker w1: exchange over NCCL, layer 1: no sums within 5s");
  peers[1].layers = 2;
  failure.passed = 2;
  EXPECT_EQ(say(failure),
            "worker w0, w1: exchange over NCCL, layer 1: rows not taken within "
            "5s");
  peers[0].silent = true;
  EXPECT_THAT(say(failure), HasSubstr("worker w0: "));
  failure.lost = WorkerId{1};
  failure.status = absl::UnavailableError("Socket closed");
  EXPECT_EQ(say(failure),
            "worker w1: exchange over NCCL, layer 1: Socket closed");
}

TEST(LinkLayers, SayWhoTakesPartInWhat) {
  const ExpertShape shape{.layers = 3, .experts = 4, .intermediate = 16};
  const auto slice = [](int32_t layer, int32_t expert) {
    return Slice{LayerId{layer}, ExpertId{expert}, 0, 16};
  };
  Placement placement;
  placement.shards = {{ShardId{0}, {slice(0, 0), slice(2, 1)}},
                      {ShardId{1}, {slice(2, 0)}},
                      {ShardId{2}, {slice(0, 1)}},
                      {ShardId{3}, {slice(1, 0)}}};
  placement.holder = {WorkerId{1}, WorkerId{0}, WorkerId{1}, kCoordinator};
  const auto layers =
      experts::LinkLayers::Create(placement, shape, {false, true, false});
  ASSERT_TRUE(layers.ok()) << layers.status();
  ASSERT_EQ(layers->elsewhere().size(), 2u);
  const auto& first = layers->at(LayerId{0});
  EXPECT_EQ(first.shards, (std::vector{WorkerId{1}, WorkerId{1}}));
  ASSERT_EQ(first.holders.size(), 1u);
  EXPECT_EQ(first.holders[0].ordinal, 0);
  const auto& last = layers->at(LayerId{2});
  EXPECT_EQ(last.shards, (std::vector{WorkerId{1}, WorkerId{0}}));
  ASSERT_EQ(last.holders.size(), 2u);
  EXPECT_EQ(last.holders[0].worker, WorkerId{0});
  EXPECT_EQ(last.holders[0].ordinal, 0);
  EXPECT_EQ(last.holders[1].ordinal, 1);
  EXPECT_EQ(layers->shards_max(), 2u);
  const auto refused = experts::LinkLayers::Create(placement, shape, {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("the coordinator holds a part of layer 1"));
}

}  // namespace
}  // namespace conclave::testing
