// SPDX-License-Identifier: Apache-2.0
// The language model's head, of which each rank computes a part: the bits of
// the whole one, whichever rows are wanted.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "common/bf16.h"
#include "kernels/device_product.h"
#include "tests/parity/group/group_runner.h"
#include "tests/parity/group/mid_size.h"
#include "tests/parity/group/sampled.h"
#include "tests/testing/golden.h"
#include "tests/testing/seeded.h"

namespace conclave::testing {
namespace {

constexpr int32_t kVocab = 2048;  // of the embedded model
constexpr double kExact = 1e-5;

// The head of a whole model on the device of rank 0.
class WholeHead {
 public:
  WholeHead(const checkpoint::Checkpoint& model, const GroupCase& where)
      : hidden_(model.config().hidden_size) {
    auto queue = kernels::DeviceQueue::Create(where.device(0));
    EXPECT_TRUE(queue.ok()) << queue.status();
    queue_ = *std::move(queue);
    auto weights = model::LoadDeviceWeights(model, queue_.get(), {});
    EXPECT_TRUE(weights.ok()) << weights.status();
    weights_ = *std::move(weights);
  }

  // Logits of normed rows, [rows, hidden].
  std::vector<float> Of(const std::vector<float>& normed, bool exact) {
    const kernels::DeviceMatrix& head = weights_.head.parts[0];
    const size_t rows = normed.size() / static_cast<size_t>(hidden_);
    const size_t width = static_cast<size_t>(head.units) * 64;
    std::vector<float> wide(rows * width);
    for (size_t i = 0; i < normed.size(); ++i) {
      wide[i / hidden_ * width + i % hidden_] = normed[i];
    }
    std::vector<uint16_t> rounded;
    for (const float x : wide) rounded.push_back(ToBf16(x));
    const auto buffer = [&](size_t bytes) {
      return *queue_->Allocate(bytes, "a test's rows");
    };
    const auto x = buffer(wide.size() * sizeof(float));
    const auto ordered = buffer(wide.size() * sizeof(uint16_t));
    const auto to = buffer(rows * head.out_cols * sizeof(float));
    EXPECT_TRUE(
        (exact ? queue_->Upload(
                     wide.data(), wide.size() * sizeof(float), x.as<void>())
               : queue_->Upload(rounded.data(),
                                rounded.size() * sizeof(uint16_t),
                                x.as<void>()))
            .ok());
    EXPECT_TRUE(
        kernels::DeviceProduct(queue_.get(),
                               head,
                               {.data = x.as<void>(),
                                .bf16 = !exact,
                                .wide = exact ? nullptr : ordered.as<void>()},
                               nullptr,
                               static_cast<int32_t>(rows),
                               1,
                               to.as<float>())
            .ok());
    std::vector<float> out(rows * head.out_cols);
    EXPECT_TRUE(
        queue_->Download(to.as<void>(), out.size() * sizeof(float), out.data())
            .ok());
    return out;
  }

 private:
  const int32_t hidden_;
  std::unique_ptr<kernels::DeviceQueue> queue_;
  model::DeviceWeights weights_;
};

// A step whose feeds want their last rows; its logits are those of the whole
// head, of the rows that the step itself shows.
void ExpectWhole(GroupRunner& group,
                 WholeHead& head,
                 const std::vector<ModelRunner::Feed>& feeds,
                 bool exact) {
  const auto logits = group.runner->Step(feeds);
  ASSERT_TRUE(logits.ok()) << logits.status();
  std::vector<float> normed, got;
  const std::vector<float>& all = group.runner->hidden();
  size_t rows = 0;
  for (const auto& feed : feeds) rows += feed.tokens.size();
  const size_t hidden = all.size() / rows;
  size_t begin = 0;
  for (size_t i = 0; i < feeds.size(); ++i) {
    const size_t from = begin + static_cast<size_t>(feeds[i].logits_from);
    begin += feeds[i].tokens.size();
    normed.insert(
        normed.end(), &all[from * hidden], all.data() + begin * hidden);
    got.insert(got.end(), (*logits)[i].begin(), (*logits)[i].end());
  }
  EXPECT_EQ(got, head.Of(normed, exact));
}

// Prompts of which some rows are wanted, and single rows.
void ExpectWholeHead(const checkpoint::Checkpoint& model,
                     const GroupSetting& setting,
                     bool exact) {
  GroupRunner group(model, setting, exact);
  ASSERT_NE(group.decoder, nullptr);
  WholeHead head(model, setting.where);
  const int32_t vocab = model.config().vocab_size;
  Seeded random(31);
  const auto tokens = [&](int32_t count) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < count; ++i) ids.push_back(random.Int(vocab));
    return ids;
  };
  auto one = group.runner->Open(0);
  auto two = group.runner->Open(1);
  ExpectWhole(group,
              head,
              {{.sequence = &one,
                .tokens = tokens(37),
                .prefill = true,
                .logits_from = 34},
               {.sequence = &two,
                .tokens = tokens(70),
                .prefill = true,
                .logits_from = 66}},
              exact);
  for (int32_t step = 0; step < 2; ++step) {
    ExpectWhole(group,
                head,
                {{.sequence = &one, .tokens = tokens(1)},
                 {.sequence = &two, .tokens = tokens(1)}},
                exact);
    ExpectWhole(group, head, {{.sequence = &two, .tokens = tokens(1)}}, exact);
  }
}

class GroupHead : public ::testing::TestWithParam<GroupSetting> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupHead,
                         ::testing::ValuesIn(GroupSettings()),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(GroupHead, HasTheBitsOfTheWhole) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  for (const bool exact : {true, false}) {
    ExpectWholeHead(TinyModel(), GetParam(), exact);
  }
}

class GroupHeadFormats : public ::testing::TestWithParam<GroupSetting> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupHeadFormats,
                         ::testing::ValuesIn(FewGroupSettings()),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(GroupHeadFormats, HasTheBitsOfTheWhole) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  CheckpointOptions options = MidSize();
  options.seed = 12;
  options.vocab = 200;
  options.experts = 4;
  options.experts_per_token = CheckpointOptions{}.experts_per_token;
  InEveryFormat(options, [](const checkpoint::Checkpoint& model) {
    ExpectWholeHead(model, GetParam(), /*exact=*/false);
  });
}

// More rows of a prompt are wanted than there is room for logits.
TEST_P(GroupHead, GivesAPromptsLogitsPieceByPiece) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  const auto all = [&](uint64_t logit_bytes) -> std::vector<float> {
    GroupSetting setting = GetParam();
    setting.logit_bytes = logit_bytes;
    GroupRunner group(TinyModel(), setting);
    EXPECT_NE(group.decoder, nullptr);
    if (group.decoder == nullptr) return {};
    auto sequence = group.runner->Open(0);
    std::vector<float> out;
    // Twice: the first piece of a step may come after the last of another.
    for (int32_t step = 0; step < 2; ++step) {
      const auto logits =
          group.runner->Step({{.sequence = &sequence,
                               .tokens = FindGolden("len64").ids,
                               .prefill = true,
                               .logits_from = 0}});
      EXPECT_TRUE(logits.ok()) << logits.status();
      if (!logits.ok()) return {};
      out.insert(out.end(), (*logits)[0].begin(), (*logits)[0].end());
    }
    return out;
  };
  const std::vector<float> whole = all(model::kLogitBytes);
  const std::vector<float> pieces = all(10 * kVocab * sizeof(float));
  ASSERT_EQ(pieces.size(), whole.size());
  // On a GPU few rows take another form than many.
  if (!GetParam().where.gpus) {
    EXPECT_EQ(pieces, whole);
  }
  EXPECT_LE(RelativeError(pieces.data(), whole.data(), whole.size()), kExact);
}

// Penalties too, and tokens that the model has but the tokenizer lacks.
TEST_P(GroupHead, ChoosesTheTokensOfOneDevice) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  constexpr int32_t kUsed = kVocab - 37;
  GroupRunner group(TinyModel(), GetParam());
  ASSERT_NE(group.decoder, nullptr);
  ModelRunner one(TinyModel(),
                  nullptr,
                  kernels::Backend::kCuda,
                  nullptr,
                  kernels::Activations::kF32,
                  GetParam().where.device(0));
  EXPECT_EQ(Sampled(*group.runner, kUsed), Sampled(one, kUsed));
}

// Benchmarks launch a part of a step's blocks: the ranks stay together.
TEST_P(GroupHead, ItsBlocksAreTimedAlone) {
  CONCLAVE_REQUIRE_GROUP(GetParam().where);
  using model::DeviceDecoder;
  GroupRunner group(TinyModel(), GetParam());
  ASSERT_NE(group.decoder, nullptr);
  auto sequence = group.runner->Open(0);
  const kernels::SequenceRows rows{
      .row_begin = 0,
      .rows = 1,
      .position = 0,
      .cells = {},
      .state_slot_in = -1,
      .state_slots_out = std::span<const int32_t>(&sequence.slot, 1),
      .kv_blocks = sequence.blocks};
  const int32_t token = 3;
  for (const uint32_t blocks :
       {uint32_t{DeviceDecoder::kHead},
        uint32_t{DeviceDecoder::kExchange},
        uint32_t{DeviceDecoder::kNorms | DeviceDecoder::kExchange},
        uint32_t{DeviceDecoder::kAll}}) {
    const auto seconds = group.decoder->Time(
        {std::span(&rows, 1), 1}, std::span(&token, 1), blocks, 3);
    EXPECT_TRUE(seconds.ok()) << blocks << ": " << seconds.status();
  }
  const auto greedy = group.runner->Greedy(FindGolden("len63").ids, 3);
  ASSERT_TRUE(greedy.ok()) << greedy.status();
  const std::vector<int32_t>& want = FindGolden("len63").greedy_ids;
  EXPECT_EQ(*greedy, std::vector<int32_t>(want.begin(), want.begin() + 3));
}

}  // namespace
}  // namespace conclave::testing
