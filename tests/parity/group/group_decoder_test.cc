// SPDX-License-Identifier: Apache-2.0
// A model on a group of GPUs: against the reference, against the CPU, and
// against one GPU.
#include "coordinator/model/group_decoder.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/parity/group/group_runner.h"
#include "tests/parity/group/mid_size.h"
#include "tests/testing/golden.h"
#include "tests/testing/seeded.h"
#include "tests/testing/single_process.h"
#include "tests/testing/temp_folder.h"

namespace conclave::testing {
namespace {

using checkpoint::QuantFormat;

constexpr double kExact = 1e-5;
// Rows are rounded to 8 bits of mantissa some ten times a layer, and these
// are random tokens. A token at another expert gives several times this.
constexpr double kBf16Logits = 5e-2;
constexpr int32_t kVocab = 2048;

class GroupDecoder : public ::testing::TestWithParam<GroupSetting> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupDecoder,
                         ::testing::ValuesIn(GroupSettings()),
                         [](const auto& info) { return info.param.Name(); });

double Error(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return 1e9;
  return RelativeError(got.data(), want.data(), want.size());
}

void ExpectGoldens(GroupRunner& group, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    const GoldenPrompt& prompt = FindGolden(name);
    const GoldenTensors tensors(name);
    auto sequence = group.runner->Open(2);
    auto logits = group.runner->Step({{.sequence = &sequence,
                                       .tokens = prompt.ids,
                                       .prefill = true,
                                       .logits_from = prompt.logits_from}});
    ASSERT_TRUE(logits.ok()) << logits.status();
    EXPECT_LE(Error((*logits)[0], tensors.Floats("logits")), kExact);
    const size_t until_eos = prompt.greedy_until_eos().size();
    for (size_t i = 0; i < prompt.greedy_ids.size(); ++i) {
      const int32_t token = prompt.greedy_ids[i];
      if (i < until_eos) {
        ASSERT_EQ(ArgMax(std::span((*logits)[0]).last(kVocab)), token)
            << "greedy token " << i;
      }
      logits = group.runner->Step({{.sequence = &sequence, .tokens = {token}}});
      ASSERT_TRUE(logits.ok()) << logits.status();
    }
    // All heads, or the first.
    const std::span<const float> state =
        group.decoder->GdnState(0, sequence.slot);
    std::string of = "gdn_state.0";
    if (!tensors.Has(of)) of = "gdn_state_head0.0";
    const std::vector<float> want = tensors.Floats(of);
    ASSERT_LE(want.size(), state.size());
    EXPECT_LE(RelativeError(state.data(), want.data(), want.size()), kExact);
    const std::span<const float> conv =
        group.decoder->ConvState(0, sequence.slot);
    const std::vector<float> rows = tensors.Floats("conv_state.0");
    const size_t channels = rows.size() / 4;
    ASSERT_EQ(conv.size(), 3 * channels);
    std::vector<float> turned(conv.size());
    for (size_t tap = 0; tap < 3; ++tap) {
      for (size_t c = 0; c < channels; ++c) {
        turned[tap * channels + c] = rows[c * 4 + tap + 1];
      }
    }
    EXPECT_LE(RelativeError(conv.data(), turned.data(), turned.size()), kExact);
  }
}

TEST_P(GroupDecoder, KeepsTheGoldens) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  GroupRunner group(TinyModel(), GetParam());
  ASSERT_NE(group.decoder, nullptr);
  ExpectGoldens(group, {"len1", "len65", "story"});
}

class UnevenGroup : public ::testing::TestWithParam<GroupSetting> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         UnevenGroup,
                         ::testing::ValuesIn(UnevenSettings()),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(UnevenGroup, KeepsTheGoldens) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  GroupRunner group(TinyModel(), GetParam());
  ASSERT_NE(group.decoder, nullptr);
  ASSERT_EQ(group.columns.size(), GetParam().shares.size());
  for (size_t rank = 0; rank < group.columns.size(); ++rank) {
    EXPECT_EQ(group.columns[rank], 16 * GetParam().shares[rank]);
  }
  ExpectGoldens(group, {"len65"});
}

// Steps of several sequences, prompts and single rows mixed.
std::vector<float> Walk(ModelRunner& runner, int32_t vocab) {
  Seeded random(9);
  std::vector<ModelRunner::Sequence> sequences;
  std::vector<float> out;
  for (int32_t s = 0; s < 3; ++s) {
    sequences.push_back(runner.Open(s));
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 20 + 31 * s; ++i) ids.push_back(random.Int(vocab));
    const auto last = runner.Prefill(&sequences[s], ids);
    EXPECT_TRUE(last.ok()) << last.status();
    if (!last.ok()) return {};
    out.insert(out.end(), last->begin(), last->end());
  }
  for (int32_t step = 0; step < 6; ++step) {
    std::vector<ModelRunner::Feed> feeds;
    for (int32_t s = 0; s < 3; ++s) {
      if (step % 3 == s) continue;
      feeds.push_back(
          {.sequence = &sequences[s], .tokens = {random.Int(vocab)}});
    }
    const auto logits = runner.Step(feeds);
    EXPECT_TRUE(logits.ok()) << logits.status();
    if (!logits.ok()) return {};
    for (const std::vector<float>& each : *logits) {
      out.insert(out.end(), each.begin(), each.end());
    }
  }
  return out;
}

class GroupFormats : public ::testing::TestWithParam<GroupSetting> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupFormats,
                         ::testing::ValuesIn(FewGroupSettings()),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(GroupFormats, IsTheCpuOnRandomModelsOfEveryFormat) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  InEveryFormat(MidSize(), [&](const checkpoint::Checkpoint& model) {
    SingleProcess cpu(kernels::Backend::kCpu, {}, 2, model);
    GroupRunner group(model, GetParam());
    ASSERT_NE(group.decoder, nullptr);
    const int32_t vocab = model.config().vocab_size;
    const auto want = Walk(*cpu.runner, vocab);
    EXPECT_LE(Error(Walk(*group.runner, vocab), want), kExact);
  });
}

// Eight groups of columns in four parts that are not alike, and, of FP8, four
// blocks in two.
TEST(UnevenRandom, AreTheCpuOnQuantisedModels) {
  for (const auto& [format, setting] :
       {std::pair(
            QuantFormat::kMlx,
            GroupSetting{
                {.ranks = 4}, model::GroupForm::kSymmetric, {1, 4, 2, 1}}),
        std::pair(
            QuantFormat::kFp8,
            GroupSetting{{.ranks = 2}, model::GroupForm::kLone, {1, 3}})}) {
    CONCLAVE_REQUIRE_GROUP(setting.where);
    SCOPED_TRACE(setting.Name());
    TempFolder folder;
    WriteCheckpoint(folder.path(), MidSize(format, {4, 64}));
    const auto model = checkpoint::Checkpoint::Open(folder.path());
    ASSERT_TRUE(model.ok()) << model.status();
    SingleProcess cpu(kernels::Backend::kCpu, {}, 2, **model);
    GroupRunner group(**model, setting);
    ASSERT_NE(group.decoder, nullptr);
    const int32_t vocab = (*model)->config().vocab_size;
    EXPECT_LE(Error(Walk(*group.runner, vocab), Walk(*cpu.runner, vocab)),
              kExact);
  }
}

TEST_P(GroupDecoder, RoundsAsOneDeviceDoes) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  SingleProcess cpu(kernels::Backend::kCpu);
  GroupRunner group(TinyModel(), GetParam(), /*exact=*/false);
  ASSERT_NE(group.decoder, nullptr);
  const auto got = Walk(*group.runner, kVocab);
  EXPECT_LE(Error(got, Walk(*cpu.runner, kVocab)), kBf16Logits);
  EXPECT_EQ(Walk(*group.runner, kVocab), got);  // the same bits again
}

TEST_P(GroupDecoder, ChoosesTokensOnRankZero) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  GroupRunner group(TinyModel(), GetParam());
  ASSERT_NE(group.decoder, nullptr);
  const GoldenPrompt& prompt = FindGolden("story");
  auto sequence = group.runner->Open(0);
  auto logits = group.runner->Prefill(&sequence, prompt.ids);
  ASSERT_TRUE(logits.ok()) << logits.status();
  auto sampler = group.decoder->MakeSampler(kVocab);
  ASSERT_TRUE(sampler.ok() && *sampler != nullptr);
  int32_t token = ArgMax(std::span(*logits).last(kVocab));
  const std::vector<int32_t> want = prompt.greedy_until_eos();
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(token, want[i]) << "token " << i;
    const kernels::SequenceRows rows{
        .row_begin = 0,
        .rows = 1,
        .position = sequence.position++,
        .cells = {},
        .state_slot_in = sequence.slot,
        .state_slots_out = std::span<const int32_t>(&sequence.slot, 1),
        .kv_blocks = sequence.blocks};
    const kernels::DeviceSampling greedy;
    const int32_t fed = token;
    const absl::Status status = (*sampler)->Run({std::span(&rows, 1), 1},
                                                std::span(&fed, 1),
                                                std::span(&greedy, 1),
                                                std::span(&token, 1));
    ASSERT_TRUE(status.ok()) << status;
  }
}

// A group of one is the decoder of one device, to the bit.
TEST(GroupOfOne, HasTheBitsOfOneDevice) {
  const GroupSetting setting{.where = {.ranks = 1}};
  CONCLAVE_REQUIRE_GROUP(setting.where);
  for (const bool exact : {true, false}) {
    GroupRunner group(TinyModel(), setting, exact);
    ModelRunner one(
        TinyModel(),
        nullptr,
        kernels::Backend::kCuda,
        nullptr,
        exact ? kernels::Activations::kF32 : kernels::Activations::kInt8,
        kernels::kHostDevice);
    ASSERT_NE(group.decoder, nullptr);
    EXPECT_EQ(Walk(*group.runner, kVocab), Walk(one, kVocab));
    EXPECT_EQ(group.decoder->dense_bytes(), one.decoder().dense_bytes());
  }
}

TEST(GroupPlace, MakesAGroupOrSaysWhyNot) {
  CONCLAVE_REQUIRE_GROUP(GroupCase{});
  model::DevicePlace place;
  place.gpus = {kernels::kHostDevice, kernels::kHostDevice};
  place.shares = {1, 3};
  uint64_t done = 0, total = 0;
  place.progress = [&](uint64_t d, uint64_t t) {
    done = d;
    total = t;
  };
  auto made = model::Decoder::Create(TinyModel(),
                                     nullptr,
                                     kernels::Backend::kCuda,
                                     nullptr,
                                     ModelRunner::Sizes(),
                                     kernels::Activations::kF32,
                                     place);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(done, total);
  EXPECT_EQ(done, (*made)->dense_bytes() + (*made)->expert_bytes());
  ModelRunner runner(*std::move(made), kVocab);
  const GoldenPrompt& prompt = FindGolden("len63");
  const auto got = runner.Greedy(prompt.ids, 4);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got,
            std::vector<int32_t>(prompt.greedy_ids.begin(),
                                 prompt.greedy_ids.begin() + 4));
  place.shares = {1, 1, 1};
  made = model::Decoder::Create(TinyModel(),
                                nullptr,
                                kernels::Backend::kCuda,
                                nullptr,
                                ModelRunner::Sizes(),
                                kernels::Activations::kF32,
                                place);
  EXPECT_EQ(made.status().message(),
            "shares 1,1,1 of 2 GPUs; give one for each, 1 to 1000");
  place.shares.clear();
  place.gpus.resize(3, kernels::kHostDevice);
  made = model::Decoder::Create(TinyModel(),
                                nullptr,
                                kernels::Backend::kCuda,
                                nullptr,
                                ModelRunner::Sizes(),
                                kernels::Activations::kF32,
                                place);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace conclave::testing
