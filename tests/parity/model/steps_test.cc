// SPDX-License-Identifier: Apache-2.0

// One result, whatever way the tokens came: cut into steps, decoded one by
// one, or beside other sequences.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/parity/model/tolerances.h"
#include "tests/testing/golden.h"
#include "tests/testing/model_runner.h"
#include "tests/testing/seeded.h"
#include "tests/testing/single_process.h"

namespace conclave::parity {
namespace {

using testing::FindGolden;
using testing::ModelRunner;
using testing::SingleProcess;
using Sequence = ModelRunner::Sequence;
using Logits = std::vector<float>;

class Steps : public ::testing::TestWithParam<kernels::Backend> {};

template <typename T>
T Value(absl::StatusOr<T> result) {
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : T{};
}

std::vector<float> StatesOf(const ModelRunner& runner, int32_t slot) {
  std::vector<float> out;
  for (const int32_t layer : {0, 1, 2, 4, 5, 6}) {
    const auto gdn = runner.decoder().GdnState(layer, slot);
    const auto conv = runner.decoder().ConvState(layer, slot);
    out.insert(out.end(), gdn.begin(), gdn.end());
    out.insert(out.end(), conv.begin(), conv.end());
  }
  return out;
}

TEST_P(Steps, ChunksOnTheGridGiveTheSameBits) {
  SingleProcess model(GetParam());
  const std::vector<int32_t>& ids = FindGolden("len129").ids;
  Sequence whole = model.runner->Open(0);
  const Logits want = Value(model.runner->Prefill(&whole, ids));
  ASSERT_FALSE(want.empty());
  for (const int32_t chunk : {64, 128}) {
    SCOPED_TRACE(absl::StrCat("chunks of ", chunk));
    Sequence cut = model.runner->Open(1);
    EXPECT_EQ(Value(model.runner->Prefill(&cut, ids, chunk)), want);
    EXPECT_EQ(StatesOf(*model.runner, cut.slot),
              StatesOf(*model.runner, whole.slot));
  }
}

TEST_P(Steps, DecodeAfterPrefillIsALongerPrefill) {
  const Tolerance tolerance = ToleranceOf(GetParam(), WeightFormat::kBF16);
  SingleProcess model(GetParam());
  const std::vector<int32_t>& ids = FindGolden("len129").ids;
  for (const size_t prefilled : {1u, 2u, 63u, 64u, 120u}) {
    SCOPED_TRACE(absl::StrCat("prefill of ", prefilled));
    const size_t total = std::min(prefilled + 5, ids.size());
    Sequence longer = model.runner->Open(0);
    const Logits want = Value(
        model.runner->Prefill(&longer, {ids.begin(), ids.begin() + total}));
    Sequence decoded = model.runner->Open(1);
    Value(model.runner->Prefill(&decoded,
                                {ids.begin(), ids.begin() + prefilled}));
    Logits got;
    for (size_t i = prefilled; i < total; ++i) {
      got = Value(
          model.runner->Step({{.sequence = &decoded, .tokens = {ids[i]}}}))[0];
    }
    ASSERT_EQ(got.size(), want.size());
    EXPECT_LE(testing::RelativeError(got.data(), want.data(), got.size()),
              tolerance.logits);
    const auto got_states = StatesOf(*model.runner, decoded.slot);
    const auto want_states = StatesOf(*model.runner, longer.slot);
    EXPECT_LE(testing::RelativeError(
                  got_states.data(), want_states.data(), got_states.size()),
              tolerance.state);
  }
}

// A step that decodes two sequences while it prefills two others.
TEST_P(Steps, SequencesTogetherGiveTheBitsOfEachAlone) {
  SingleProcess model(GetParam());
  ModelRunner& runner = *model.runner;
  const std::vector<std::string> names = {"story", "add", "len65", "len129"};
  std::vector<std::vector<Logits>> alone(4), together(4);
  for (int32_t s = 0; s < 4; ++s) {
    const auto& prompt = FindGolden(names[s]);
    Sequence sequence = runner.Open(s);
    alone[s].push_back(Value(runner.Prefill(&sequence, prompt.ids)));
    for (int32_t i = 0; i < 3; ++i) {
      alone[s].push_back(Value(runner.Step(
          {{.sequence = &sequence, .tokens = {prompt.greedy_ids[i]}}}))[0]);
    }
  }
  // Sequence s begins at step s, so every step mixes prefill and decode.
  std::vector<Sequence> open;
  for (int32_t s = 0; s < 4; ++s) open.push_back(runner.Open(s));
  for (int32_t step = 0; step < 7; ++step) {
    std::vector<ModelRunner::Feed> feeds;
    std::vector<int32_t> who;
    for (int32_t s = 0; s < 4; ++s) {
      const auto& prompt = FindGolden(names[s]);
      const int32_t at = step - s;
      if (at < 0 || at > 3) continue;
      who.push_back(s);
      if (at == 0) {
        feeds.push_back(
            {.sequence = &open[s],
             .tokens = prompt.ids,
             .prefill = true,
             .logits_from = static_cast<int32_t>(prompt.ids.size()) - 1});
      } else {
        feeds.push_back(
            {.sequence = &open[s], .tokens = {prompt.greedy_ids[at - 1]}});
      }
    }
    const auto logits = Value(runner.Step(feeds));
    for (size_t i = 0; i < who.size(); ++i) {
      together[who[i]].push_back(logits[i]);
    }
  }
  for (int32_t s = 0; s < 4; ++s) {
    EXPECT_EQ(together[s], alone[s]) << names[s];
  }
}

TEST_P(Steps, ThreadsDoNotChangeBits) {
  SingleProcess one(GetParam(), {}, 1);
  SingleProcess three(GetParam(), {}, 3);
  const std::vector<int32_t>& ids = FindGolden("len129").ids;
  Sequence a = one.runner->Open(0), b = three.runner->Open(0);
  EXPECT_EQ(Value(one.runner->Prefill(&a, ids)),
            Value(three.runner->Prefill(&b, ids)));
}

TEST_P(Steps, WhatDoesNotFitIsRefused) {
  SingleProcess model(GetParam());
  Sequence sequence = model.runner->Open(0);
  const auto code = [&](Sequence s, std::vector<int32_t> tokens) {
    return model.runner->Step({{.sequence = &s, .tokens = std::move(tokens)}})
        .status()
        .code();
  };
  EXPECT_EQ(code(sequence, {2048}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(sequence, {-1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(sequence, {}), absl::StatusCode::kInvalidArgument);
  Sequence wrong = sequence;
  wrong.slot = ModelRunner::kSequences;
  EXPECT_EQ(code(wrong, {1}), absl::StatusCode::kInvalidArgument);
  wrong = sequence;
  wrong.blocks[0] = ModelRunner::kSequences * ModelRunner::kBlocks;
  EXPECT_EQ(code(wrong, {1}), absl::StatusCode::kInvalidArgument);
  wrong = sequence;
  wrong.blocks.clear();
  EXPECT_EQ(code(wrong, {1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(sequence, {1}), absl::StatusCode::kOk);
}

INSTANTIATE_TEST_SUITE_P(Backends,
                         Steps,
                         ::testing::Values(kernels::Backend::kCpuPlain,
                                           kernels::Backend::kCpu),
                         [](const auto& info) {
                           return info.param == kernels::Backend::kCpu
                                      ? "fast"
                                      : "plain";
                         });

}  // namespace
}  // namespace conclave::parity
