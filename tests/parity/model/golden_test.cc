// SPDX-License-Identifier: Apache-2.0

// The decoder against the official implementation, prompt by prompt, for every
// backend. Tolerances: tolerances.h.

#include "tests/testing/golden.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/parity/model/tolerances.h"
#include "tests/testing/form.h"
#include "tests/testing/model_runner.h"
#include "tests/testing/seeded.h"
#include "tests/testing/single_process.h"

namespace conclave::parity {
namespace {

using testing::GoldenPrompt;
using testing::GoldenTensors;
using testing::ModelRunner;
using testing::RelativeError;

constexpr int32_t kHidden = 256, kVocab = 2048, kLayers = 8, kTopK = 4;

// Keeps the rows from `from` on.
class Recorder final : public model::Probe {
 public:
  explicit Recorder(int32_t from) : from_(from) {}
  void Hidden(int32_t, std::span<const float> x) override {
    hidden.emplace_back(x.begin() + from_ * kHidden, x.end());
  }
  void Routed(int32_t, const experts::Routing& routing) override {
    expert.emplace_back(routing.expert.begin() + from_ * kTopK,
                        routing.expert.end());
    weight.emplace_back(routing.weight.begin() + from_ * kTopK,
                        routing.weight.end());
  }
  std::vector<std::vector<float>> hidden;  // [embedding and layers]
  std::vector<std::vector<int32_t>> expert;
  std::vector<std::vector<float>> weight;

 private:
  int32_t from_;
};

double Error(const std::vector<float>& got, const float* want) {
  return RelativeError(got.data(), want, got.size());
}

// Sets must be equal, but where an expert that only one side chose is as good
// as one that only the other side chose.
void ExpectRouting(const Recorder& got,
                   const GoldenTensors& want,
                   const Tolerance& tolerance) {
  const std::vector<int32_t> index = want.Ints("router_index");
  const std::vector<float> weight = want.Floats("router_weight");
  const size_t rows = index.size() / kLayers / kTopK;
  for (size_t layer = 0; layer < kLayers; ++layer) {
    for (size_t row = 0; row < rows; ++row) {
      std::map<int32_t, float> ours, theirs;
      for (size_t k = 0; k < kTopK; ++k) {
        const size_t there = (layer * rows + row) * kTopK + k;
        const size_t here = row * kTopK + k;
        ours[got.expert[layer][here]] = got.weight[layer][here];
        theirs[index[there]] = weight[there];
      }
      std::vector<float> only_ours, only_theirs;
      for (const auto& [e, w] : ours) {
        if (theirs.count(e) == 0) {
          only_ours.push_back(w);
        } else {
          EXPECT_NEAR(w, theirs[e], tolerance.routing_weight)
              << "layer " << layer << ", row " << row << ", expert " << e;
        }
      }
      for (const auto& [e, w] : theirs) {
        if (ours.count(e) == 0) only_theirs.push_back(w);
      }
      ASSERT_EQ(only_ours.size(), only_theirs.size());
      for (size_t i = 0; i < only_ours.size(); ++i) {
        EXPECT_NEAR(only_ours[i], only_theirs[i], tolerance.routing_tie)
            << "other experts in layer " << layer << ", row " << row;
      }
    }
  }
}

void ExpectLogits(const std::vector<float>& got,
                  const GoldenTensors& tensors,
                  const Tolerance& tolerance) {
  const std::vector<float> want = tensors.Floats("logits");
  ASSERT_EQ(got.size(), want.size());
  EXPECT_LE(Error(got, want.data()), tolerance.logits);
  for (size_t row = 0; row < got.size() / kVocab; ++row) {
    EXPECT_EQ(testing::ArgMax(std::span(got).subspan(row * kVocab, kVocab)),
              testing::ArgMax(std::span(want).subspan(row * kVocab, kVocab)))
        << "top-1 of row " << row;
  }
}

void ExpectHidden(const Recorder& got,
                  const std::vector<float>& final_hidden,
                  const GoldenTensors& tensors,
                  const Tolerance& tolerance) {
  const std::vector<float> want = tensors.Floats("hidden");
  ASSERT_EQ(got.hidden.size(), size_t{kLayers} + 1);
  for (size_t i = 0; i < got.hidden.size(); ++i) {
    const size_t size = got.hidden[i].size();
    ASSERT_EQ(size * got.hidden.size(), want.size());
    EXPECT_LE(Error(got.hidden[i], &want[i * size]), tolerance.hidden)
        << (i == 0 ? "embedding" : absl::StrCat("after layer ", i - 1));
  }
  const std::vector<float> want_final = tensors.Floats("final_hidden");
  ASSERT_LE(want_final.size(), final_hidden.size());
  const std::vector<float> kept(final_hidden.end() - want_final.size(),
                                final_hidden.end());
  EXPECT_LE(Error(kept, want_final.data()), tolerance.hidden);
}

// Reference: [channels, 4], ours: [3, channels], the last three of the four.
void ExpectConvState(std::span<const float> got,
                     const std::vector<float>& want,
                     const Tolerance& tolerance) {
  const size_t channels = want.size() / 4;
  ASSERT_EQ(got.size(), channels * 3);
  std::vector<float> turned(got.size());
  for (size_t tap = 0; tap < 3; ++tap) {
    for (size_t c = 0; c < channels; ++c) {
      turned[tap * channels + c] = want[c * 4 + tap + 1];
    }
  }
  EXPECT_LE(RelativeError(got.data(), turned.data(), got.size()),
            tolerance.state);
}

void ExpectStates(const ModelRunner& runner,
                  int32_t slot,
                  const GoldenTensors& tensors,
                  const Tolerance& tolerance) {
  int32_t compared = 0;
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    SCOPED_TRACE(absl::StrCat("states of layer ", layer));
    if (layer % 4 == 3) continue;
    ExpectConvState(runner.decoder().ConvState(layer, slot),
                    tensors.Floats(absl::StrCat("conv_state.", layer)),
                    tolerance);
    const std::span<const float> got = runner.decoder().GdnState(layer, slot);
    std::string name = absl::StrCat("gdn_state.", layer);
    if (!tensors.Has(name)) name = absl::StrCat("gdn_state_head0.", layer);
    if (!tensors.Has(name)) continue;
    const std::vector<float> want = tensors.Floats(name);
    ASSERT_LE(want.size(), got.size());  // all heads, or the first
    EXPECT_LE(RelativeError(got.data(), want.data(), want.size()),
              tolerance.state);
    ++compared;
  }
  EXPECT_GE(compared, 2);
}

class Golden
    : public ::testing::TestWithParam<std::tuple<testing::Form, std::string>> {
};

// The prompt in one step, then its greedy tokens one by one. The reference's
// states were taken when all 64 of them had been fed.
TEST_P(Golden, PromptThenGreedyTokens) {
  const auto [form, name] = GetParam();
  CONCLAVE_REQUIRE_FORM(form);
  const GoldenPrompt& prompt = testing::FindGolden(name);
  const GoldenTensors tensors(name);
  const Tolerance tolerance = ToleranceOf(form.backend, WeightFormat::kBF16);
  testing::SingleProcess model(form.backend,
                               {},
                               2,
                               testing::TinyModel(),
                               kernels::Activations::kF32,
                               form.gpu);
  ModelRunner::Sequence sequence = model.runner->Open(2);
  Recorder recorder(prompt.logits_from);
  auto logits = model.runner->Step({{.sequence = &sequence,
                                     .tokens = prompt.ids,
                                     .prefill = true,
                                     .logits_from = prompt.logits_from}},
                                   &recorder);
  ASSERT_TRUE(logits.ok()) << logits.status();
  ExpectLogits((*logits)[0], tensors, tolerance);
  ExpectHidden(recorder, model.runner->hidden(), tensors, tolerance);
  ExpectRouting(recorder, tensors, tolerance);

  const size_t until_eos = prompt.greedy_until_eos().size();
  for (size_t i = 0; i < prompt.greedy_ids.size(); ++i) {
    const int32_t token = prompt.greedy_ids[i];
    if (i < until_eos) {
      ASSERT_EQ(testing::ArgMax(std::span((*logits)[0]).last(kVocab)), token)
          << "greedy token " << i;
    }
    logits = model.runner->Step({{.sequence = &sequence, .tokens = {token}}});
    ASSERT_TRUE(logits.ok()) << logits.status();
  }
  ExpectStates(*model.runner, sequence.slot, tensors, tolerance);
}

std::string CaseName(const ::testing::TestParamInfo<Golden::ParamType>& info) {
  return absl::StrCat(
      std::get<0>(info.param).Name(), "_", std::get<1>(info.param));
}

const std::string kPrompts[] = {"len1",
                                "len2",
                                "len63",
                                "len64",
                                "len65",
                                "len129",
                                "story",
                                "add",
                                "tool_call",
                                "tool_answer",
                                "multi_turn",
                                "long"};

INSTANTIATE_TEST_SUITE_P(
    Prompts,
    Golden,
    ::testing::Combine(::testing::Values(testing::kPlainForm,
                                         testing::kFastForm,
                                         testing::kGpuForm),
                       ::testing::ValuesIn(kPrompts)),
    CaseName);
// The loops of the twin take their time over long contexts.
INSTANTIATE_TEST_SUITE_P(
    Twin,
    Golden,
    ::testing::Combine(::testing::Values(testing::kTwinForm),
                       ::testing::Values("len1", "len65", "story", "add")),
    CaseName);

TEST(GoldenSet, IsComplete) { EXPECT_EQ(testing::GoldenPrompts().size(), 12u); }

}  // namespace
}  // namespace conclave::parity
