// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/quantisation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/checkpoint/model_config.h"
#include "tests/testing/checkpoint_writer.h"

namespace conclave::checkpoint {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<ModelConfig> Parse(const std::string& members) {
  std::string text = testing::ConfigJson({});
  text.insert(1, members + ",");
  return ParseModelConfig(text, "config.json");
}

std::string Mlx(const std::string& members) {
  return R"("quantization":{"group_size":64,"bits":4)" + members + "}";
}

std::string Gptq(const std::string& members) {
  return R"("quantization_config":{"quant_method":"gptq","group_size":128,)"
         R"("bits":4)" +
         members + "}";
}

TEST(Quantisation, ModulesOfTheirOwnGoByTheirNameWithoutPrefix) {
  const auto config = Parse(Mlx(
      R"(,"mode":"affine",)"
      R"("language_model.model.layers.0.mlp.gate":{"group_size":32,"bits":8},)"
      R"("language_model.lm_head":{"group_size":64,"bits":6,"mode":"affine"},)"
      R"("model.layers.1.mlp.gate":false,"vision_tower.x":true)"));
  ASSERT_TRUE(config.ok()) << config.status();
  const Quantisation& q = config->quantisation;
  EXPECT_EQ(q.format, QuantFormat::kMlx);
  EXPECT_EQ(q.Of("embed_tokens"), (AffineFormat{4, 64}));
  EXPECT_EQ(q.Of("layers.0.mlp.gate"), (AffineFormat{8, 32}));
  EXPECT_EQ(q.Of("lm_head"), (AffineFormat{6, 64}));
  EXPECT_EQ(q.Of("layers.1.mlp.gate"), AffineFormat{});
}

TEST(Quantisation, MlxWritesItTwice) {
  const std::string twice =
      Mlx("") + R"(,"quantization_config":{"group_size":64,"bits":)";
  EXPECT_TRUE(Parse(twice + "4}").ok());
  EXPECT_THAT(std::string(Parse(twice + "8}").status().message()),
              HasSubstr("say different things"));
}

TEST(Quantisation, ReadsGptq) {
  const auto v1 = Parse(Gptq(
      R"(,"sym":true,"desc_act":false,"lm_head":false,"dynamic":{"a":{}})"));
  ASSERT_TRUE(v1.ok()) << v1.status();
  EXPECT_EQ(v1->quantisation.format, QuantFormat::kGptq);
  EXPECT_EQ(v1->quantisation.affine, (AffineFormat{4, 128}));
  EXPECT_EQ(v1->quantisation.gptq_zero, 7);
  const auto v2 = Parse(Gptq(R"(,"checkpoint_format":"gptq_v2")"));
  ASSERT_TRUE(v2.ok()) << v2.status();
  EXPECT_EQ(v2->quantisation.gptq_zero, 8);
}

TEST(Quantisation, WhatCannotBeReadIsNamed) {
  const struct {
    std::string members, error;
  } kCases[] = {
      {Mlx(R"(,"mode":"mxfp4")"), "\"mxfp4\" is not supported"},
      {R"("quantization":{"group_size":16,"bits":4,"mode":"nvfp4"})",
       "\"nvfp4\" is not supported"},
      {R"("quantization_config":{"quant_method":"modelopt",)"
       R"("quant_algo":"NVFP4"})",
       "\"modelopt\" (NVFP4) is not supported"},
      {R"("quantization_config":{"quant_method":"compressed-tensors",)"
       R"("format":"nvfp4-pack-quantized"})",
       "(nvfp4-pack-quantized) is not supported"},
      {R"("quantization":{"group_size":48,"bits":4})",
       "quantization.group_size: 48 is not supported"},
      {R"("quantization":{"group_size":64,"bits":7})",
       "quantization.bits: 7 is not supported"},
      {R"("quantization":{"group_size":64,"bits":2})", "quantization.bits"},
      {R"("quantization":3)", "quantization: must be a JSON object"},
      {Mlx(R"(,"bitz":4)"), "quantization.bitz: is neither"},
      {Mlx(R"(,"lm_head":{"bits":9,"group_size":64})"),
       "quantization.lm_head.bits"},
      {Gptq(R"(,"desc_act":true)"), "quantization_config.desc_act: is true"},
      {Gptq(R"(,"sym":false)"), "quantization_config.sym: is false"},
      {Gptq(R"(,"new":1)"), "quantization_config.new: is not known"},
      {Gptq(R"(,"checkpoint_format":"marlin")"), "\"marlin\" is not supported"},
      {R"("quantization_config":{"quant_method":"gptq","bits":8,)"
       R"("group_size":128})",
       "quantization_config.bits"},
  };
  for (const auto& c : kCases) {
    EXPECT_THAT(std::string(Parse(c.members).status().message()),
                HasSubstr(c.error));
  }
}

}  // namespace
}  // namespace conclave::checkpoint
