// SPDX-License-Identifier: Apache-2.0

// Two micro-batches in flight against steps as a whole: same bits.

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/metrics.h"
#include "common/transport/wire.h"
#include "tests/parity/model/remote_model.h"
#include "tests/testing/golden.h"
#include "tests/testing/seeded.h"

namespace conclave::parity {
namespace {

using testing::FindGolden;
using testing::ModelRunner;

// All logits and final hidden rows of: prompts of three sequences; two further
// ones between rows that decode; rows of all five; a single sequence.
std::vector<std::vector<float>> Everything(ModelRunner* runner) {
  std::vector<std::vector<float>> out;
  const std::vector<std::string> names = {
      "story", "len65", "len2", "tool_call", "len63"};
  std::vector<ModelRunner::Sequence> sequences;
  for (int32_t i = 0; i < 5; ++i) sequences.push_back(runner->Open(i));
  const auto prompt = [&](size_t i) {
    return ModelRunner::Feed{.sequence = &sequences[i],
                             .tokens = FindGolden(names[i]).ids,
                             .prefill = true};
  };
  const auto decode = [&](size_t i, size_t token) {
    return ModelRunner::Feed{
        .sequence = &sequences[i],
        .tokens = {FindGolden(names[i]).greedy_ids[token]}};
  };
  const auto step = [&](const std::vector<ModelRunner::Feed>& feeds) {
    auto logits = runner->Step(feeds);
    ASSERT_TRUE(logits.ok()) << logits.status();
    for (auto& one : *logits) out.push_back(std::move(one));
    out.push_back(runner->hidden());
  };
  step({prompt(0), prompt(1), prompt(2)});
  step({decode(0, 0), prompt(3), decode(1, 0), decode(2, 0), prompt(4)});
  for (size_t i = 0; i < 3; ++i) {
    step({decode(0, i + 1),
          decode(1, i + 1),
          decode(2, i + 1),
          decode(3, i),
          decode(4, i)});
  }
  step({decode(3, 3)});
  return out;
}

class MicroBatches
    : public ::testing::TestWithParam<std::tuple<testing::Form, size_t>> {};

TEST_P(MicroBatches, GiveTheBitsOfWholeSteps) {
  const auto [form, index] = GetParam();
  CONCLAVE_REQUIRE_FORM(form);
  const v1::ClusterConfig config = Topologies()[index].config();
  Metrics metrics;
  Remote whole(config, form);
  Remote cut(config, form, DType::kF32, {}, {.count = 2, .metrics = &metrics});
  const auto want = Everything(whole.runner.get());
  ASSERT_EQ(want.size(), 30u);
  EXPECT_EQ(Everything(cut.runner.get()), want);
  const std::string text = metrics.Render();
  for (const char* series : {"{micro_batches=\"1\"} 1", "\"2\"} 5"}) {
    EXPECT_NE(text.find(series), std::string::npos) << text;
  }
}

std::string CaseOf(
    const ::testing::TestParamInfo<MicroBatches::ParamType>& info) {
  return absl::StrCat(std::get<0>(info.param).Name(),
                      "_",
                      Topologies()[std::get<1>(info.param)].name);
}

INSTANTIATE_TEST_SUITE_P(
    Topologies,
    MicroBatches,
    ::testing::Combine(::testing::Values(testing::kFastForm),
                       ::testing::Values(0, 2, 5, 8)),
    CaseOf);
// Where the forms that rows call for are those of the whole step.
INSTANTIATE_TEST_SUITE_P(
    Twin,
    MicroBatches,
    ::testing::Combine(::testing::Values(testing::kTwinForm),
                       ::testing::Values(2, 8)),
    CaseOf);
INSTANTIATE_TEST_SUITE_P(
    Plain,
    MicroBatches,
    ::testing::Combine(::testing::Values(testing::kPlainForm),
                       ::testing::Values(2)),
    CaseOf);

// Half of the layers on the device, the others on workers.
const std::vector<bool>& HalfHere() {
  static const auto* const half =
      new std::vector<bool>{true, true, false, true, false, false, true, false};
  return *half;
}

class OnDevice : public ::testing::TestWithParam<testing::Form> {};

TEST_P(OnDevice, WholeLayersHere) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const v1::ClusterConfig config = testing::Workers({1, 1});
  Remote whole(config, GetParam(), DType::kF32, HalfHere());
  Remote cut(config, GetParam(), DType::kF32, HalfHere(), {.count = 2});
  const auto want = Everything(whole.runner.get());
  const auto got = Everything(cut.runner.get());
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_LT(
        testing::RelativeError(got[i].data(), want[i].data(), got[i].size()),
        1e-5);
  }
}

// Tokens of three sequences after their prompts, chosen on the device.
std::vector<int32_t> Sampled(ModelRunner* runner) {
  constexpr size_t kCount = 3;
  ModelRunner::Sequence sequences[kCount];
  std::vector<ModelRunner::Feed> feeds;
  const char* const names[kCount] = {"story", "len65", "tool_call"};
  for (size_t i = 0; i < kCount; ++i) {
    sequences[i] = runner->Open(static_cast<int32_t>(i));
    feeds.push_back({.sequence = &sequences[i],
                     .tokens = FindGolden(names[i]).ids,
                     .prefill = true});
  }
  const auto logits = runner->Step(feeds);
  EXPECT_TRUE(logits.ok()) << logits.status();
  const int32_t vocab = testing::TinyModel().config().vocab_size;
  const auto sampler = runner->decoder().MakeSampler(vocab);
  EXPECT_TRUE(sampler.ok()) << sampler.status();
  std::vector<int32_t> tokens, out;
  for (const char* name : names) {
    tokens.push_back(FindGolden(name).greedy_ids[0]);
  }
  for (int32_t step = 0; step < 4; ++step) {
    std::vector<kernels::SequenceRows> rows;
    std::vector<kernels::DeviceSampling> how(kCount);
    for (size_t i = 0; i < kCount; ++i) {
      ModelRunner::Sequence& s = sequences[i];
      rows.push_back({.row_begin = static_cast<int32_t>(i),
                      .rows = 1,
                      .position = s.position++,
                      .cells = {},
                      .state_slot_in = s.slot,
                      .state_slots_out = {&s.slot, 1},
                      .kv_blocks = s.blocks});
      how[i].repetition_penalty = i == 1 ? 1.5 : 1;
      how[i].counts_row = s.slot;
    }
    const std::vector<int32_t> counts(static_cast<size_t>(vocab));
    if (step == 0) {
      EXPECT_TRUE((*sampler)->SetCounts(sequences[1].slot, counts).ok());
    }
    std::vector<int32_t> next(kCount);
    const absl::Status status =
        (*sampler)->Run({.sequences = rows, .rows = 3}, tokens, how, next);
    EXPECT_TRUE(status.ok()) << status;
    out.insert(out.end(), next.begin(), next.end());
    tokens = next;
  }
  return out;
}

TEST_P(OnDevice, TokensChosenThere) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const v1::ClusterConfig config = testing::Workers({1, 1});
  Metrics metrics;
  Remote whole(config, GetParam());
  Remote cut(
      config, GetParam(), DType::kF32, {}, {.count = 2, .metrics = &metrics});
  const std::vector<int32_t> want = Sampled(whole.runner.get());
  EXPECT_EQ(want[0], FindGolden("story").greedy_ids[1]);
  EXPECT_EQ(Sampled(cut.runner.get()), want);
  EXPECT_NE(metrics.Render().find("{micro_batches=\"2\"} 5"), std::string::npos)
      << metrics.Render();
}

// The worker's answer for the second micro-batch of a layer is an error.
TEST_P(OnDevice, FailureEndsOneStepOnly) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  Remote cut(
      testing::Workers({1, 1}), GetParam(), DType::kF32, {}, {.count = 2});
  const auto want = Everything(cut.runner.get());
  int32_t requests = 0;
  cut.transport.AddWorker(
      WorkerId{1}, "w1", [&](std::span<const std::byte> frame) {
        if (++requests != 6) return cut.cluster.handler(1)(frame);
        const auto request = transport::DecodeRequest(frame);
        EXPECT_TRUE(request.ok()) << request.status();
        return transport::EncodeError({.tag = request->tag,
                                       .code = absl::StatusCode::kUnavailable,
                                       .message = "worker w1: unplugged"});
      });
  ModelRunner::Sequence a = cut.runner->Open(0), b = cut.runner->Open(1);
  const std::vector<ModelRunner::Feed> feeds = {
      {.sequence = &a, .tokens = FindGolden("story").ids, .prefill = true},
      {.sequence = &b, .tokens = FindGolden("len65").ids, .prefill = true}};
  const auto failed = cut.runner->Step(feeds);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(failed.status().message().find("w1: exchange, layer 2"),
            std::string::npos)
      << failed.status();
  EXPECT_TRUE(cut.runner->decoder().Health().ok());
  EXPECT_EQ(Everything(cut.runner.get()), want);
}

INSTANTIATE_TEST_SUITE_P(Forms,
                         OnDevice,
                         ::testing::Values(testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

// Whatever is chosen, and whenever that changes.
TEST(MeasuredGain, ChangesNoBit) {
  const v1::ClusterConfig config = testing::Workers({1, 2});
  Remote whole(config, testing::kFastForm);
  Remote chosen(config, testing::kFastForm, DType::kF32, {}, {.count = 0});
  EXPECT_EQ(Everything(chosen.runner.get()), Everything(whole.runner.get()));
}

}  // namespace
}  // namespace conclave::parity
