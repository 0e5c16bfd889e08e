// SPDX-License-Identifier: Apache-2.0

// Two micro-batches in flight against steps as a whole: same bits.

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/metrics.h"
#include "tests/parity/model/remote_model.h"
#include "tests/testing/golden.h"

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

// Whatever is chosen, and whenever that changes.
TEST(MeasuredGain, ChangesNoBit) {
  const v1::ClusterConfig config = testing::Workers({1, 2});
  Remote whole(config, testing::kFastForm);
  Remote chosen(config, testing::kFastForm, DType::kF32, {}, {.count = 0});
  EXPECT_EQ(Everything(chosen.runner.get()), Everything(whole.runner.get()));
}

}  // namespace
}  // namespace conclave::parity
