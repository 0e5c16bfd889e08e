// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "tests/testing/checkpoint_writer.h"

namespace conclave::checkpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string& Small() {
  static const auto& text =
      *new std::string(testing::ConfigJson({.mtp = true}));
  return text;
}

// The small configuration with one piece of text replaced.
std::string With(const std::string& from, const std::string& to) {
  std::string text = Small();
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return at == text.npos ? text : text.replace(at, from.size(), to);
}

// The same with a field more in text_config.
std::string Plus(const std::string& field) {
  return With("\"eos_token_id\"", field + ",\"eos_token_id\"");
}

absl::Status StatusOf(const std::string& text) {
  return ParseModelConfig(text, "config.json").status();
}

TEST(ModelConfig, BothNestingsGiveTheSame) {
  std::string flat = Small();
  const std::string open = "\"text_config\":{";
  const size_t at = flat.find(open);
  flat = "{" + flat.substr(at + open.size());
  flat.pop_back();
  const auto a = ParseModelConfig(Small(), "config.json");
  const auto b = ParseModelConfig(flat, "config.json");
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(a->hidden_size, b->hidden_size);
  EXPECT_EQ(a->full_attention, b->full_attention);
  EXPECT_EQ(a->rotary_dim, b->rotary_dim);
  EXPECT_EQ(a->eos_token_ids, std::vector<int32_t>{0});
  EXPECT_NE(a->config_sha256, b->config_sha256);
  const ExpertShape shape = a->expert_shape();
  EXPECT_EQ(shape.layers, 4);
  EXPECT_EQ(shape.experts, 8);
  EXPECT_EQ(shape.intermediate, 32);
  EXPECT_EQ(shape.hidden, 64);
}

TEST(ModelConfig, HashIsThatOfTheBytes) {
  std::ifstream in("deploy/models/qwen3.5-moe-tiny/config.json");
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto config = ParseModelConfig(text, "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->config_sha256,
            "662bd075279fdc042c5bfeb5a6fce9bf2c336a56bfc864e2d302d8a49a5f4b53");
}

TEST(ModelConfig, LayerTypesAreReadOrDerived) {
  const auto derived = ParseModelConfig(Small(), "c");
  const std::vector<bool> want = {false, false, false, true};
  EXPECT_EQ(derived->full_attention, want);
  const std::string list =
      R"("layer_types":["linear_attention","full_attention",)"
      R"("linear_attention","linear_attention"])";
  const auto given =
      ParseModelConfig(With("\"full_attention_interval\":4", list), "c");
  ASSERT_TRUE(given.ok()) << given.status();
  EXPECT_EQ(given->full_attention,
            (std::vector<bool>{false, true, false, false}));
  EXPECT_THAT(std::string(StatusOf(Plus(list)).message()),
              HasSubstr("layer_types[1]: contradicts full_attention_interval"));
  EXPECT_THAT(
      std::string(
          StatusOf(With(",\"full_attention_interval\":4", "")).message()),
      HasSubstr("text_config.full_attention_interval: is missing"));
  EXPECT_THAT(std::string(StatusOf(Plus(R"("layer_types":["x"])")).message()),
              HasSubstr("must be a list of num_hidden_layers (4)"));
}

TEST(ModelConfig, FlatRopeThetaWorks) {
  const std::string rope =
      R"("rope_parameters":{"rope_type":"default","rope_theta":10000000,)"
      R"("partial_rotary_factor":0.25})";
  const auto flat = ParseModelConfig(
      With(rope, R"("rope_theta":5e6,"partial_rotary_factor":0.5)"), "c");
  ASSERT_TRUE(flat.ok()) << flat.status();
  EXPECT_EQ(flat->rope_theta, 5e6);
  EXPECT_EQ(flat->rotary_dim, 16);
  EXPECT_THAT(std::string(StatusOf(Plus(R"("rope_theta":10000)")).message()),
              HasSubstr("rope_theta: stands in two places"));
  EXPECT_THAT(std::string(StatusOf(With(rope, "\"rope_theta\":1e7")).message()),
              HasSubstr("partial_rotary_factor: is missing"));
}

TEST(ModelConfig, BookkeepingAndVisionAreAccepted) {
  std::string text = Plus(
      R"("torch_dtype":"bfloat16","dtype":"bfloat16","use_cache":true,)"
      R"("initializer_range":0.02,"router_aux_loss_coef":0.001,)"
      R"("output_router_logits":false,"mamba_ssm_dtype":"float32",)"
      R"("attention_bias":false,"mlp_only_layers":[],"bos_token_id":null)");
  text.insert(1,
              R"("architectures":["Qwen3_5MoeForConditionalGeneration"],)"
              R"("image_token_id":248056,"transformers_version":"4.57.0.dev0",)"
              R"("vision_config":{"depth":27,"anything":[1,{"x":2}]},)");
  EXPECT_TRUE(StatusOf(text).ok()) << StatusOf(text);
}

TEST(ModelConfig, ErrorsNameFileAndField) {
  const struct {
    std::string text;
    absl::StatusCode code;
    const char* error;
  } kCases[] = {
      {With("\"hidden_size\":64", "\"hidden_size\":\"64\""),
       absl::StatusCode::kInvalidArgument,
       "text_config.hidden_size: must be a whole number in [1, 65536], is "
       "\"64\""},
      {With("\"hidden_size\":64", "\"hidden_size\":70000"),
       absl::StatusCode::kInvalidArgument,
       "text_config.hidden_size: must be"},
      {With(",\"hidden_size\":64", ""),
       absl::StatusCode::kInvalidArgument,
       "text_config.hidden_size: is missing"},
      {With("\"num_experts_per_tok\":2", "\"num_experts_per_tok\":9"),
       absl::StatusCode::kInvalidArgument,
       "num_experts_per_tok: 9 is more than num_experts (8)"},
      {With("\"num_key_value_heads\":1", "\"num_key_value_heads\":3"),
       absl::StatusCode::kInvalidArgument,
       "num_attention_heads: 2 is no multiple of num_key_value_heads (3)"},
      {With("1e-6", "0"),
       absl::StatusCode::kInvalidArgument,
       "rms_norm_eps: must be a number"},
      {With("\"eos_token_id\":0", "\"eos_token_id\":[0,128]"),
       absl::StatusCode::kInvalidArgument,
       "eos_token_id: must hold token ids in [0, 128), has 128"},
      {Plus("\"new_scale\":2,\"other\":1"),
       absl::StatusCode::kInvalidArgument,
       "text_config: unknown keys \"new_scale\", \"other\""},
      {With("\"rope_type\"", "\"surprise\":1,\"rope_type\""),
       absl::StatusCode::kInvalidArgument,
       "text_config.rope_parameters: unknown keys \"surprise\""},
      {With("0.25", "0.3"),
       absl::StatusCode::kInvalidArgument,
       "partial_rotary_factor: times head_dim gives"},
      {With("{\"model_type\"", "{\"top\":1,\"model_type\""),
       absl::StatusCode::kInvalidArgument,
       "config.json: unknown keys \"top\""},
      {With("qwen3_5_moe\"", "qwen3_next\""),
       absl::StatusCode::kUnimplemented,
       "model_type: \"qwen3_next\" is not supported"},
      {With("\"rope_type\":\"default\"", "\"rope_type\":\"yarn\""),
       absl::StatusCode::kUnimplemented,
       "rope_parameters.rope_type: rope_type \"yarn\" is not supported"},
      {Plus(R"("quantization_config":{"quant_method":"nvfp4"})"),
       absl::StatusCode::kUnimplemented,
       "quantization_config: quantisation \"nvfp4\" is not supported"},
      {Plus(R"("quantization_config":{"quant_method":"fp8"})"),
       absl::StatusCode::kInvalidArgument,
       "quantization_config.weight_block_size: is missing"},
      {Plus(R"("quantization_config":{"quant_method":"fp8",)"
            R"("weight_block_size":[64,64]})"),
       absl::StatusCode::kUnimplemented,
       "quantization_config.weight_block_size"},
      {Plus(R"("quantization_config":{"quant_method":"fp8",)"
            R"("weight_block_size":[128,128],"fmt":"e5m2"})"),
       absl::StatusCode::kUnimplemented,
       "quantization_config.fmt"},
      {Plus(R"("quantization_config":{"quant_method":"fp8",)"
            R"("weight_block_size":[128,128],"group":1})"),
       absl::StatusCode::kInvalidArgument,
       "quantization_config.group: is not known"},
      {With("{\"model_type\"", R"({"quantization":{"bits":4},"model_type")"),
       absl::StatusCode::kInvalidArgument,
       "quantization.group_size: is missing"},
      {Plus("\"attention_bias\":true"),
       absl::StatusCode::kUnimplemented,
       "text_config.attention_bias: is true; only false is supported"},
      {Plus("\"tie_word_embeddings\":true"),
       absl::StatusCode::kUnimplemented,
       "tie_word_embeddings: is true"},
      {Plus("\"hidden_act\":\"gelu\""),
       absl::StatusCode::kUnimplemented,
       "hidden_act: is \"gelu\"; only \"silu\" is supported"},
      {"{", absl::StatusCode::kInvalidArgument, "broken JSON at byte 1"},
      {"[]", absl::StatusCode::kInvalidArgument, "must hold a JSON object"},
      {"{\"a\":1,\"a\":2}",
       absl::StatusCode::kInvalidArgument,
       "the key \"a\" stands twice"},
      {R"({"model_type":"qwen3_5_moe","text_config":3})",
       absl::StatusCode::kInvalidArgument,
       "text_config: must be a JSON object"},
      {"{}", absl::StatusCode::kInvalidArgument, "model_type: is missing"},
  };
  for (const auto& c : kCases) {
    const absl::Status status = StatusOf(c.text);
    EXPECT_EQ(status.code(), c.code) << c.error << ": " << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("config.json: "), HasSubstr(c.error)));
  }
}

TEST(EosTokenIds, AreANumberOrAList) {
  EXPECT_EQ(*ParseEosTokenIds("{\"eos_token_id\":5}", "g", 10),
            std::vector<int32_t>{5});
  EXPECT_EQ(*ParseEosTokenIds("{\"eos_token_id\":[2,1],\"x\":0}", "g", 10),
            (std::vector<int32_t>{2, 1}));
  EXPECT_TRUE(ParseEosTokenIds("{}", "g", 10)->empty());
  EXPECT_TRUE(ParseEosTokenIds("{\"eos_token_id\":null}", "g", 10)->empty());
  for (const char* bad : {"{\"eos_token_id\":10}",
                          "{\"eos_token_id\":-1}",
                          "{\"eos_token_id\":\"a\"}",
                          "[]",
                          "x"}) {
    const absl::Status status = ParseEosTokenIds(bad, "g.json", 10).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("g.json"));
  }
}

}  // namespace
}  // namespace conclave::checkpoint
