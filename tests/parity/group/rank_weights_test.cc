// SPDX-License-Identifier: Apache-2.0
// What a rank of a group holds: its size is known before anything is read, and
// nothing is held twice but what has to be.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "coordinator/model/device_needs.h"
#include "coordinator/model/device_weights.h"
#include "kernels/device.h"
#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/form.h"
#include "tests/testing/golden.h"
#include "tests/testing/temp_folder.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;

constexpr GroupForm kForms[] = {GroupForm::kSymmetric, GroupForm::kLone};

TEST(RankCut, SharesHeadsAndColumns) {
  ModelConfig config = testing::TinyModel().config();
  config.num_attention_heads = 32;
  config.num_key_value_heads = 2;
  config.linear_num_key_heads = 16;
  config.linear_num_value_heads = 64;
  config.moe_intermediate_size = 1024;
  config.shared_expert_intermediate_size = 1024;
  for (const int32_t ranks : {1, 2, 4, 8}) {
    int64_t heads = 0, values = 0, columns = 0, tokens = 0;
    for (int32_t rank = 0; rank < ranks; ++rank) {
      const auto cut = CutFor(config, {rank, ranks}, {64, 64});
      ASSERT_TRUE(cut.ok()) << cut.status();
      EXPECT_EQ(cut->heads.begin, heads);
      EXPECT_EQ(cut->value_heads.begin, values);
      EXPECT_EQ(cut->columns.begin, columns);
      EXPECT_EQ(cut->columns.begin % 64, 0);
      EXPECT_EQ(cut->tokens.begin, tokens);
      EXPECT_EQ(cut->tokens.size(), config.vocab_size / ranks);
      heads = cut->heads.end;
      values = cut->value_heads.end;
      columns = cut->columns.end;
      tokens = cut->tokens.end;
      // Query heads meet the KV head that they have in the whole model.
      EXPECT_EQ(cut->kv_heads.begin, cut->heads.begin / 16);
      EXPECT_EQ(cut->kv_heads.end, (cut->heads.end - 1) / 16 + 1);
    }
    EXPECT_EQ(tokens, config.vocab_size);
    EXPECT_EQ(heads, 32);
    EXPECT_EQ(values, 64);
    EXPECT_EQ(columns, 1024);
  }
}

TEST(RankCut, CutsTheHeadAtWholeTiles) {
  using Bounds = std::vector<int32_t>;
  EXPECT_EQ(HeadBounds(248320, 1), (Bounds{0, 248320}));
  EXPECT_EQ(HeadBounds(248320, 2), (Bounds{0, 124160, 248320}));
  EXPECT_EQ(HeadBounds(248320, 3), (Bounds{0, 82784, 165552, 248320}));
  EXPECT_EQ(HeadBounds(1000, 4), (Bounds{0, 256, 512, 768, 1000}));
  // Some have none, but never the first.
  EXPECT_EQ(HeadBounds(40, 4), (Bounds{0, 16, 32, 40, 40}));
  EXPECT_EQ(HeadBounds(17, 4), (Bounds{0, 16, 16, 17, 17}));
  EXPECT_EQ(HeadBounds(5, 8), (Bounds{0, 5, 5, 5, 5, 5, 5, 5, 5}));
  ModelConfig config = testing::TinyModel().config();
  config.vocab_size = 17;
  for (const GroupForm form : kForms) {
    const auto cut = CutFor(config, {1, 4, form}, {16, 16});
    ASSERT_TRUE(cut.ok()) << cut.status();
    EXPECT_EQ(cut->tokens.size(), 0);
    EXPECT_EQ(LogitColumns(*cut, 17), 0);
    const auto first = CutFor(config, {0, 4, form}, {16, 16});
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(LogitColumns(*first, 17), 17);
  }
}

// Widths of the units that ranks hold, one after the other without a gap.
std::vector<int64_t> UnitsOf(const ModelConfig& config,
                             const std::vector<int32_t>& shares,
                             GroupForm form,
                             const ColumnMultiples& multiples) {
  const auto ranks = static_cast<int32_t>(shares.size());
  std::vector<int64_t> out;
  int64_t columns = 0, shared = 0;
  for (int32_t rank = 0; rank < ranks; ++rank) {
    const auto cut = CutFor(config, {rank, ranks, form, shares}, multiples);
    EXPECT_TRUE(cut.ok()) << cut.status();
    if (!cut.ok()) return {};
    EXPECT_EQ(cut->columns.begin, columns);
    EXPECT_EQ(cut->shared_columns.begin, shared);
    EXPECT_GT(cut->shared_columns.size(), 0);
    columns = cut->columns.end;
    shared = cut->shared_columns.end;
    out.push_back(cut->columns.size() / multiples.routed);
  }
  EXPECT_EQ(columns, config.moe_intermediate_size);
  EXPECT_EQ(shared, config.shared_expert_intermediate_size);
  return out;
}

TEST(RankCut, UnevenSharesCoverAllColumnsOnce) {
  using Units = std::vector<int64_t>;
  ModelConfig config = testing::TinyModel().config();
  config.moe_intermediate_size = 1024;
  config.shared_expert_intermediate_size = 512;
  const auto units = [&](const std::vector<int32_t>& shares) {
    return UnitsOf(config, shares, GroupForm::kLone, {64, 128});
  };
  EXPECT_EQ(units({1, 1}), (Units{8, 8}));
  EXPECT_EQ(units({2, 3}), (Units{6, 10}));  // 6.4, 9.6
  EXPECT_EQ(units({3, 2}), (Units{10, 6}));
  EXPECT_EQ(units({1, 2, 1}), (Units{4, 8, 4}));
  EXPECT_EQ(units({1, 1, 1}), (Units{5, 6, 5}));
  // Nobody has none, however little its share is.
  EXPECT_EQ(units({1, 1000}), (Units{1, 15}));
  EXPECT_EQ(units({1000, 1}), (Units{15, 1}));
  EXPECT_EQ(units({1, 1000, 1, 1}), (Units{1, 13, 1, 1}));
  EXPECT_EQ(UnitsOf(config, {3, 1}, GroupForm::kSymmetric, {64, 64}),
            (Units{12, 4}));
  // Heads stay even.
  const auto first =
      CutFor(config, {0, 2, GroupForm::kSymmetric, {3, 1}}, {64, 64});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->heads.size(), config.num_attention_heads / 2);
  EXPECT_EQ(first->value_heads.size(), config.linear_num_value_heads / 2);
}

TEST(RankCut, RefusesSharesThatAreNone) {
  const ModelConfig& config = testing::TinyModel().config();
  for (const std::vector<int32_t>& bad : std::vector<std::vector<int32_t>>{
           {1}, {1, 1, 1}, {0, 1}, {1, -1}, {1, 1001}}) {
    const auto cut = CutFor(config, {0, 2, GroupForm::kLone, bad}, {16, 16});
    EXPECT_EQ(cut.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(
        cut.status().message().find(" of 2 GPUs; give one for each, 1 to 1000"),
        std::string::npos)
        << cut.status();
  }
}

TEST(RankCut, NamesWhatCannotBeCut) {
  ModelConfig config = testing::TinyModel().config();
  const auto heads = CutFor(config, {0, 3}, {16, 16});
  EXPECT_EQ(heads.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(heads.status().message().find("attention heads"), std::string::npos)
      << heads.status();
  const auto columns = CutFor(config, {0, 2}, {64, 16});
  EXPECT_NE(columns.status().message().find(
                "64 columns of an expert (in multiples of 64) cannot be cut "
                "for 2 GPUs"),
            std::string::npos)
      << columns.status();
  EXPECT_FALSE(CutFor(config, {2, 2}, {16, 16}).ok());
  EXPECT_FALSE(CutFor(config, {0, 16}, {16, 16}).ok());
}

uint64_t HeadBytes(const std::vector<DeviceWeights>& ranks) {
  uint64_t sum = 0;
  for (const DeviceWeights& w : ranks) {
    for (const kernels::DeviceMatrix& part : w.head.parts) sum += part.bytes();
  }
  return sum;
}

uint64_t SumOf(const std::vector<DeviceWeights>& ranks) {
  uint64_t sum = 0;
  for (const DeviceWeights& w : ranks) sum += w.expert_bytes;
  return sum;
}

void ExpectBytesKnown(const checkpoint::Checkpoint& checkpoint) {
  for (const GroupForm form : kForms) {
    uint64_t whole = 0, head = 0;
    for (const std::vector<int32_t>& shares :
         std::vector<std::vector<int32_t>>{{1}, {1, 1}, {1, 3}, {1, 1, 1, 1}}) {
      const auto ranks = static_cast<int32_t>(shares.size());
      SCOPED_TRACE(::testing::PrintToString(shares));
      auto queue = kernels::DeviceQueue::Create(kernels::kHostDevice);
      ASSERT_TRUE(queue.ok()) << queue.status();
      std::vector<DeviceWeights> all;
      for (int32_t rank = 0; rank < ranks; ++rank) {
        const RankConfig who{rank, ranks, form, shares};
        const auto bytes = DeviceWeightBytesOf(checkpoint, {}, who);
        ASSERT_TRUE(bytes.ok()) << bytes.status();
        auto weights =
            LoadDeviceWeights(checkpoint, queue->get(), {.rank = who});
        ASSERT_TRUE(weights.ok()) << weights.status();
        EXPECT_EQ(*bytes, weights->dense_bytes + weights->expert_bytes);
        EXPECT_EQ(weights->head.parts.size(), 1);
        all.push_back(*std::move(weights));
      }
      if (ranks == 1) whole = SumOf(all);
      if (ranks == 1) head = HeadBytes(all);
      EXPECT_EQ(HeadBytes(all), head);
      // What is cut below 64 columns is filled up to them.
      EXPECT_GE(SumOf(all), whole);
      EXPECT_LE(SumOf(all), 2 * whole);
    }
  }
}

TEST(RankWeights, BytesAreKnownBeforeLoading) {
  CONCLAVE_REQUIRE_FORM(testing::kTwinForm);
  ExpectBytesKnown(testing::TinyModel());
}

TEST(RankWeights, QuantisedBytesAreKnownBeforeLoading) {
  CONCLAVE_REQUIRE_FORM(testing::kTwinForm);
  using checkpoint::QuantFormat;
  for (const auto& [format, affine] :
       {std::pair(QuantFormat::kMlx, checkpoint::AffineFormat{4, 64}),
        std::pair(QuantFormat::kGptq, checkpoint::AffineFormat{4, 128}),
        std::pair(QuantFormat::kFp8, checkpoint::AffineFormat{})}) {
    testing::TempFolder folder;
    testing::WriteCheckpoint(folder.path(),
                             {.hidden = 256,
                              .experts = 4,
                              .intermediate = 512,
                              .shared = 512,
                              .heads = 4,
                              .kv_heads = 2,
                              .head_dim = 128,
                              .gdn_key_heads = 4,
                              .gdn_value_heads = 8,
                              .gdn_key_dim = 128,
                              .gdn_value_dim = 128,
                              .format = format,
                              .affine = affine});
    const auto model = checkpoint::Checkpoint::Open(folder.path());
    ASSERT_TRUE(model.ok()) << model.status();
    ExpectBytesKnown(**model);
  }
}

TEST(RankWeights, MadeUpOnesHaveTheirPart) {
  CONCLAVE_REQUIRE_FORM(testing::kTwinForm);
  ModelConfig config = testing::TinyModel().config();
  const MadeUpModel model{
      config, [](LinearRole, int64_t rows, int64_t cols) {
        return WeightLayout{.dtype = DType::kBF16, .rows = rows, .cols = cols};
      }};
  auto queue = kernels::DeviceQueue::Create(kernels::kHostDevice);
  ASSERT_TRUE(queue.ok());
  for (const GroupForm form : kForms) {
    for (int32_t rank = 0; rank < 4; ++rank) {
      const RankConfig who{rank, 4, form};
      const auto bytes = MadeUpBytes(model, who);
      const auto weights = MakeUpWeights(model, who, queue->get());
      ASSERT_TRUE(bytes.ok() && weights.ok()) << weights.status();
      EXPECT_EQ(*bytes, weights->dense_bytes + weights->expert_bytes);
      EXPECT_EQ(weights->config.moe_intermediate_size,
                config.moe_intermediate_size / 4);
      const bool mixers = form == GroupForm::kSymmetric || rank == 0;
      EXPECT_EQ(weights->layers[0].in.parts.empty(), !mixers);
    }
    const RankConfig uneven{1, 2, form, {1, 3}};
    const auto bytes = MadeUpBytes(model, uneven);
    const auto weights = MakeUpWeights(model, uneven, queue->get());
    ASSERT_TRUE(bytes.ok() && weights.ok()) << weights.status();
    EXPECT_EQ(*bytes, weights->dense_bytes + weights->expert_bytes);
    EXPECT_EQ(weights->config.moe_intermediate_size, 48);
  }
}

}  // namespace
}  // namespace conclave::model
