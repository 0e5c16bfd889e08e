// SPDX-License-Identifier: Apache-2.0
#include "coordinator/planner/shapes.h"

#include <gtest/gtest.h>

#include <string>

#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/shard_weights.h"

namespace conclave::planner {
namespace {

struct Row {
  const char* format;
  uint64_t bytes[3];  // 35B, 122B, 397B
};

// docs/qwen3.5-moe 5.3, most of them confirmed by published files.
constexpr Row kSums[] = {
    {"bf16", {71'903'655'008, 250'173'007'840, 806'795'875'168}},
    {"fp8", {37'454'789'472, 127'152'299'488, 406'125'164'000}},
    {"gptq-int4", {24'403'162'208, 78'844'078'048, 235'657'499'488}},
    {"mlx8", {37'721'130'592, 130'648'036'320, 422'032'580'192}},
    {"mlx4", {20'391'405'152, 69'593'314'272, 223'860'768'352}}};

TEST(Shapes, CheckpointBytesAreThePublishedOnes) {
  const auto names = ShapeNames();
  for (const Row& row : kSums) {
    for (size_t i = 0; i < names.size(); ++i) {
      const auto bytes =
          CheckpointBytes(*ShapeOf(names[i]), *ParseFormat(row.format));
      EXPECT_EQ(bytes.Total(), row.bytes[i]) << names[i] << " " << row.format;
    }
  }
}

TEST(Shapes, OneExpert) {
  const auto shape = *ShapeOf("397b-a17b");
  EXPECT_EQ(ResidentBytes(shape, WeightFormat::kBf16).expert, 25'165'824u);
  EXPECT_EQ(ResidentBytes(shape, WeightFormat::kFp8).expert, 12'584'448u);
  EXPECT_EQ(ResidentBytes(shape, WeightFormat::kGptqInt4).expert, 6'488'064u);
  EXPECT_EQ(ResidentBytes(shape, WeightFormat::kMlx4).expert, 7'077'888u);
}

TEST(Shapes, ResidentHasNoVisionAndMtpApart) {
  const auto shape = *ShapeOf("122b-a10b");
  const auto bytes = ResidentBytes(shape, WeightFormat::kBf16);
  EXPECT_EQ(bytes.vision, 0u);
  EXPECT_EQ(bytes.experts, 2u * 115'964'116'992u);
  EXPECT_GT(bytes.mtp, 2u * 2'523'679'232u);  // its norms are float32
  EXPECT_EQ(ResidentBytes(shape, WeightFormat::kMlx4).mtp, 0u);
}

TEST(Shapes, WhatASequenceOwns) {
  const auto shape = *ShapeOf("397b-a17b");
  EXPECT_EQ(KvBytesPerToken(shape, 2), 30'720u);
  EXPECT_EQ(StateBytes(shape, 4), 188'743'680u + 2u * 3'317'760u);
  EXPECT_EQ(StateBytes(shape, 2), 188'743'680u / 2 + 2u * 3'317'760u);
}

TEST(Shapes, UnknownNamesListTheKnown) {
  EXPECT_NE(ShapeOf("7b").status().message().find("397b-a17b"),
            absl::string_view::npos);
  EXPECT_NE(ParseFormat("q4").status().message().find("mlx4"),
            absl::string_view::npos);
}

// What a load of the embedded model reports.
TEST(Shapes, ResidentExpertsAreWhatALoadHolds) {
  const auto checkpoint =
      *checkpoint::Checkpoint::Open("deploy/models/qwen3.5-moe-tiny");
  const auto& config = checkpoint->config();
  Shard shard;
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (int32_t expert = 0; expert < config.num_experts; ++expert) {
      shard.slices.push_back(
          {LayerId{layer}, ExpertId{expert}, 0, config.moe_intermediate_size});
    }
  }
  const auto loaded = checkpoint::LoadShard(*checkpoint, shard, nullptr);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(ResidentBytes(config, WeightFormat::kBf16).experts, loaded->bytes);
}

}  // namespace
}  // namespace conclave::planner
