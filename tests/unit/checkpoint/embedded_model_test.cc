// SPDX-License-Identifier: Apache-2.0
// The embedded model, read as everybody reads it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/shard_weights.h"

namespace conclave::checkpoint {
namespace {

constexpr char kFolder[] = "deploy/models/qwen3.5-moe-tiny";

class EmbeddedModel : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = Checkpoint::Open(kFolder);
    ASSERT_TRUE(opened.ok()) << opened.status();
    model_ = *std::move(opened);
  }
  std::unique_ptr<Checkpoint> model_;
};

TEST_F(EmbeddedModel, ConfigurationIsRead) {
  const ModelConfig& c = model_->config();
  EXPECT_EQ(c.vocab_size, 2048);
  EXPECT_EQ(c.hidden_size, 256);
  ASSERT_EQ(c.full_attention.size(), 8u);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(c.full_attention[i], i % 4 == 3);
  EXPECT_FLOAT_EQ(c.rms_norm_eps, 1e-6f);
  EXPECT_EQ(c.max_position_embeddings, 32768);
  EXPECT_EQ(c.head_dim, 256);
  EXPECT_EQ(c.rotary_dim, 64);
  EXPECT_EQ(c.rope_theta, 1e7);
  EXPECT_EQ(c.linear_num_key_heads, 2);
  EXPECT_EQ(c.linear_num_value_heads, 4);
  EXPECT_EQ(c.num_experts, 16);
  EXPECT_EQ(c.num_experts_per_tok, 4);
  EXPECT_EQ(c.moe_intermediate_size, 64);
  EXPECT_EQ(c.shared_expert_intermediate_size, 64);
  EXPECT_EQ(c.mtp_num_hidden_layers, 1);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int32_t>{2002, 2000}));
  EXPECT_EQ(c.config_sha256.size(), 64u);
}

TEST_F(EmbeddedModel, TensorsAreNamedWithoutPrefix) {
  EXPECT_EQ(model_->total_tensor_bytes(), 30'152'336u);
  EXPECT_TRUE(model_->Has("embed_tokens.weight"));
  EXPECT_TRUE(model_->Has("lm_head.weight"));
  EXPECT_TRUE(model_->Has("mtp.fc.weight"));
  EXPECT_FALSE(model_->Has("model.language_model.embed_tokens.weight"));
  const auto a_log = model_->Find("layers.0.linear_attn.A_log");
  ASSERT_TRUE(a_log.ok());
  EXPECT_EQ(a_log->dtype, DType::kF32);
  EXPECT_EQ(a_log->shape, std::vector<int64_t>{4});
  const auto none = model_->Find("layers.8.mlp.gate.weight");
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(none.status().message().find("layers.8.mlp.gate.weight"),
            absl::string_view::npos);
}

TEST_F(EmbeddedModel, FloatsAreTheStoredBits) {
  for (const char* name : {"layers.3.self_attn.q_norm.weight",
                           "layers.0.linear_attn.norm.weight",
                           "layers.5.mlp.shared_expert.up_proj.weight"}) {
    const auto tensor = model_->Find(name);
    ASSERT_TRUE(tensor.ok());
    const auto floats = model_->ReadFloats(name);
    ASSERT_TRUE(floats.ok());
    const size_t size = SizeOf(tensor->dtype);
    ASSERT_EQ(floats->size() * size, tensor->data.size());
    for (size_t i = 0; i < floats->size(); ++i) {
      uint32_t bits = 0;  // bf16 is the upper half of a float
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + 4 - size,
                  tensor->data.data() + i * size,
                  size);
      uint32_t got = 0;
      std::memcpy(&got, &(*floats)[i], 4);
      ASSERT_EQ(got, bits) << name << " " << i;
    }
  }
}

TEST_F(EmbeddedModel, EveryExpertLoads) {
  Shard shard;
  for (int32_t layer = 0; layer < 8; ++layer) {
    for (int32_t expert = 0; expert < 16; ++expert) {
      shard.slices.push_back({LayerId{layer}, ExpertId{expert}, 0, 64});
    }
  }
  uint64_t last = 0;
  const auto weights =
      LoadShard(*model_, shard, [&](uint64_t done, uint64_t total) {
        EXPECT_GT(done, last);
        EXPECT_LE(done, total);
        last = done;
      });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->bytes, 8u * 16 * 3 * 64 * 256 * 2);
  EXPECT_EQ(last, weights->bytes);
  for (int32_t layer = 0; layer < 8; ++layer) {
    const std::string at = "layers." + std::to_string(layer) + ".mlp.experts.";
    const auto gate_up = model_->Find(at + "gate_up_proj");
    const auto down = model_->Find(at + "down_proj");
    const ShardLayer& loaded = weights->layers[layer];
    constexpr size_t kBytes = 64 * 256 * 2;  // of one projection
    for (size_t e = 0; e < 16; ++e) {
      const auto gate = gate_up->data.subspan(2 * e * kBytes, kBytes);
      const auto up = gate_up->data.subspan((2 * e + 1) * kBytes, kBytes);
      EXPECT_TRUE(std::ranges::equal(
          loaded.gate.data.bytes().subspan(e * kBytes, kBytes), gate));
      EXPECT_TRUE(std::ranges::equal(
          loaded.up.data.bytes().subspan(e * kBytes, kBytes), up));
    }
    EXPECT_TRUE(std::ranges::equal(loaded.down.data.bytes(), down->data));
  }
}

TEST(GoldenFiles, AreReadable) {
  auto file = SafetensorsFile::Open("tests/golden/add.fp32.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->Find("conv_state.0").ok());
  const auto none = (*file)->Find("no such tensor");
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace conclave::checkpoint
