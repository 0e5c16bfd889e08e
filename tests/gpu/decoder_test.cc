// SPDX-License-Identifier: Apache-2.0
// The embedded model on the GPU in bf16: against the reference as far as
// rounding lets it, and against itself, where nothing may differ.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/bf16.h"
#include "tests/testing/form.h"
#include "tests/testing/golden.h"
#include "tests/testing/model_runner.h"
#include "tests/testing/seeded.h"

namespace conclave {
namespace {

using testing::ModelRunner;

// Rows are rounded to 8 bits of mantissa some ten times a layer. A token at
// another expert gives several times this.
constexpr double kBf16Logits = 3e-2;
// Steps whose two best tokens are closer may pick the other one.
constexpr float kGapMin = 0.05f;
constexpr int32_t kVocab = 2048;

std::unique_ptr<ModelRunner> Rounded(
    testing::Form form,
    kernels::GdnDType gdn = kernels::GdnDType::kF32,
    kernels::Activations activations = kernels::Activations::kInt8) {
  return std::make_unique<ModelRunner>(testing::TinyModel(),
                                       nullptr,
                                       kernels::Backend::kCuda,
                                       nullptr,
                                       activations,
                                       form.gpu,
                                       std::vector<bool>(),
                                       gdn);
}

// Greedy tokens from `logits` on, until the two best come close; how many.
size_t FollowGreedy(ModelRunner& runner,
                    const testing::GoldenPrompt& prompt,
                    std::vector<float> logits,
                    ModelRunner::Sequence* sequence) {
  size_t followed = 0;
  for (const int32_t token : prompt.greedy_until_eos()) {
    std::vector<float> last(logits.end() - kVocab, logits.end());
    EXPECT_EQ(testing::ArgMax(last), token) << "greedy token " << followed;
    if (testing::ArgMax(last) != token) break;
    std::nth_element(
        last.begin(), last.begin() + 1, last.end(), std::greater<float>());
    if (last[0] - last[1] < kGapMin) break;
    auto step = runner.Step({{.sequence = sequence, .tokens = {token}}});
    EXPECT_TRUE(step.ok()) << step.status();
    if (!step.ok()) break;
    logits = std::move((*step)[0]);
    ++followed;
  }
  return followed;
}

std::vector<int32_t> Walk(uint32_t seed, int32_t count) {
  testing::Seeded random(seed);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back(random.Int(kVocab));
  return ids;
}

class DeviceDecoder : public ::testing::TestWithParam<testing::Form> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         DeviceDecoder,
                         ::testing::Values(testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(DeviceDecoder, GoldenPromptsInBf16) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto runner = Rounded(GetParam());
  for (const testing::GoldenPrompt& prompt : testing::GoldenPrompts()) {
    SCOPED_TRACE(prompt.name);
    // The loops of the twin take their time over long contexts.
    if (GetParam().gpu == kernels::kHostDevice && prompt.ids.size() > 150) {
      continue;
    }
    const testing::GoldenTensors golden(prompt.name);
    auto sequence = runner->Open(1);
    auto logits = runner->Step({{.sequence = &sequence,
                                 .tokens = prompt.ids,
                                 .prefill = true,
                                 .logits_from = prompt.logits_from}});
    ASSERT_TRUE(logits.ok()) << logits.status();
    const std::vector<float> want = golden.Floats("logits");
    ASSERT_EQ((*logits)[0].size(), want.size());
    EXPECT_LE(
        testing::RelativeError((*logits)[0].data(), want.data(), want.size()),
        kBf16Logits);
    if (prompt.name != "story" && prompt.name != "len63") continue;
    EXPECT_GE(FollowGreedy(*runner, prompt, (*logits)[0], &sequence), 3u);
  }
}

// The prompt in short steps, so that states are rounded on the way.
TEST_P(DeviceDecoder, GoldenPromptsWithStatesInBf16) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto runner = Rounded(GetParam(), kernels::GdnDType::kBF16);
  for (const char* name : {"story", "len63"}) {
    SCOPED_TRACE(name);
    const testing::GoldenPrompt& prompt = testing::FindGolden(name);
    auto sequence = runner->Open(1);
    std::vector<float> last;
    for (size_t at = 0; at < prompt.ids.size(); at += 8) {
      const size_t end = std::min(at + 8, prompt.ids.size());
      auto logits = runner->Step(
          {{.sequence = &sequence,
            .tokens = {prompt.ids.begin() + at, prompt.ids.begin() + end},
            .prefill = true,
            .logits_from = static_cast<int32_t>(end - at) - 1}});
      ASSERT_TRUE(logits.ok()) << logits.status();
      last = std::move((*logits)[0]);
    }
    const std::vector<float> want =
        testing::GoldenTensors(prompt.name).Floats("logits");
    EXPECT_LE(testing::RelativeError(
                  last.data(), &want[want.size() - kVocab], kVocab),
              kBf16Logits);
    EXPECT_GE(FollowGreedy(*runner, prompt, last, &sequence), 3u);
  }
}

bool IsBf16(float x) { return FromBf16(ToBf16(x)) == x; }

TEST_P(DeviceDecoder, StatesAreStoredAsAsked) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  constexpr auto kInt8 = kernels::Activations::kInt8;
  constexpr auto kF32 = kernels::Activations::kF32;
  const std::vector<int32_t> ids = Walk(5, 40);
  std::vector<std::vector<float>> states;  // of the first layer
  for (const auto& [gdn, activations] :
       {std::pair(kernels::GdnDType::kF32, kInt8),
        std::pair(kernels::GdnDType::kBF16, kInt8),
        std::pair(kernels::GdnDType::kBF16, kF32)}) {
    const auto runner = Rounded(GetParam(), gdn, activations);
    auto sequence = runner->Open(2);
    ASSERT_TRUE(runner->Prefill(&sequence, ids).ok());
    const auto state = runner->decoder().GdnState(0, sequence.slot);
    states.emplace_back(state.begin(), state.end());
  }
  // One step, so that only what is written differs.
  std::vector<float> rounded = states[0];
  for (float& x : rounded) x = FromBf16(ToBf16(x));
  EXPECT_EQ(states[1], rounded);
  // Exact mode is float32, whatever was asked.
  EXPECT_FALSE(std::all_of(states[2].begin(), states[2].end(), IsBf16));
}

TEST_P(DeviceDecoder, PrefillInStepsIsPrefillAtOnce) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto runner = Rounded(GetParam());
  const std::vector<int32_t> ids = Walk(5, 500);
  auto whole = runner->Open(0), cut = runner->Open(3);
  const auto at_once = runner->Prefill(&whole, ids);
  const auto in_steps = runner->Prefill(&cut, ids, 64);
  ASSERT_TRUE(at_once.ok() && in_steps.ok());
  EXPECT_LE(testing::RelativeError(
                in_steps->data(), at_once->data(), at_once->size()),
            kBf16Logits);
}

TEST_P(DeviceDecoder, DecodeAfterPrefillIsLongerPrefill) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto runner = Rounded(GetParam());
  const std::vector<int32_t> ids = Walk(6, 90);
  auto longer = runner->Open(0), shorter = runner->Open(1);
  const auto want = runner->Prefill(&longer, ids);
  ASSERT_TRUE(want.ok());
  ASSERT_TRUE(runner->Prefill(&shorter, {ids.begin(), ids.begin() + 70}).ok());
  std::vector<float> got;
  for (size_t i = 70; i < ids.size(); ++i) {
    auto logits = runner->Step({{.sequence = &shorter, .tokens = {ids[i]}}});
    ASSERT_TRUE(logits.ok()) << logits.status();
    got = (*logits)[0];
  }
  EXPECT_LE(testing::RelativeError(got.data(), want->data(), got.size()),
            kBf16Logits);
}

// A sequence in a recorded step among others has the bits that it has alone,
// where the number of rows asks for the same form of products.
TEST_P(DeviceDecoder, SequencesDoNotSeeEachOther) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto alone = Rounded(GetParam()), together = Rounded(GetParam());
  std::vector<ModelRunner::Sequence> lone, joint;
  for (int32_t s = 0; s < 6; ++s) {
    lone.push_back(alone->Open(s));
    joint.push_back(together->Open(s));
    const auto ids = Walk(20 + s, 30 + 17 * s);
    ASSERT_TRUE(alone->Prefill(&lone[s], ids).ok());
    ASSERT_TRUE(together->Prefill(&joint[s], ids).ok());
  }
  for (int32_t step = 0; step < 40; ++step) {
    // They join and leave.
    std::vector<ModelRunner::Feed> feeds;
    std::vector<int32_t> who;
    for (int32_t s = 0; s < 6; ++s) {
      if ((step / 5 + s) % 3 == 0) continue;
      feeds.push_back(
          {.sequence = &joint[s], .tokens = {(step * 37 + s * 101) % kVocab}});
      who.push_back(s);
    }
    const auto got = together->Step(feeds);
    ASSERT_TRUE(got.ok()) << got.status();
    for (size_t i = 0; i < who.size(); ++i) {
      const auto want =
          alone->Step({{.sequence = &lone[who[i]], .tokens = feeds[i].tokens}});
      ASSERT_TRUE(want.ok()) << want.status();
      EXPECT_LE(
          testing::RelativeError((*got)[i].data(), (*want)[0].data(), kVocab),
          kBf16Logits)
          << "step " << step << ", sequence " << who[i];
    }
  }
}

TEST_P(DeviceDecoder, RepeatedStepsGiveTheSameBits) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto runner = Rounded(GetParam());
  const std::vector<int32_t> ids = Walk(8, 130);
  std::vector<float> first;
  for (int32_t i = 0; i < 3; ++i) {
    auto sequence = runner->Open(2);
    ASSERT_TRUE(runner->Prefill(&sequence, ids).ok());
    auto logits = runner->Step({{.sequence = &sequence, .tokens = {17}}});
    ASSERT_TRUE(logits.ok()) << logits.status();
    if (i == 0) first = (*logits)[0];
    EXPECT_EQ((*logits)[0], first);
  }
}

TEST(DeviceMemory, RefusesWhatDoesNotFit) {
  CONCLAVE_REQUIRE_GPU();
  const auto decoder =
      model::Decoder::Create(testing::TinyModel(),
                             nullptr,
                             kernels::Backend::kCuda,
                             nullptr,
                             {.kv_blocks = 100'000'000, .state_slots = 4},
                             kernels::Activations::kInt8);
  EXPECT_EQ(decoder.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(decoder.status().message().find("KV cache: needs"),
            std::string::npos)
      << decoder.status();
}

}  // namespace
}  // namespace conclave
