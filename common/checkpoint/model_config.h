// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/quantisation.h"
#include "common/slices.h"

namespace conclave::checkpoint {

// config.json of a qwen3_5_moe checkpoint, validated once; names as there.
// docs/qwen3.5-moe 1.
struct ModelConfig {
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t num_hidden_layers = 0;
  std::vector<bool> full_attention;  // [layers], else Gated DeltaNet
  float rms_norm_eps = 1e-6f;
  int32_t max_position_embeddings = 0;

  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;
  double rope_theta = 0;

  int32_t linear_num_key_heads = 0;
  int32_t linear_num_value_heads = 0;
  int32_t linear_key_head_dim = 0;
  int32_t linear_value_head_dim = 0;
  int32_t linear_conv_kernel_dim = 0;

  int32_t num_experts = 0;
  int32_t num_experts_per_tok = 0;
  int32_t moe_intermediate_size = 0;
  int32_t shared_expert_intermediate_size = 0;

  Quantisation quantisation;

  int32_t mtp_num_hidden_layers = 0;
  std::vector<int32_t> eos_token_ids;  // generation_config.json, else config

  // SHA-256 of config.json's bytes, hex: both sides compare it.
  std::string config_sha256;

  ExpertShape expert_shape() const;
};

// Both nestings (text_config or flat). Errors name the file's field: wrong or
// missing type, value out of bounds, unsupported model_type, rope_type or
// quantisation, layer_types that contradict full_attention_interval, unknown
// keys (InvalidArgument lists them; keys that are known and without meaning
// for inference are accepted).
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::string_view file_name);

// eos_token_id of generation_config.json, a number or a list; empty where the
// file does not say. Ids outside [0, vocab_size) are InvalidArgument.
absl::StatusOr<std::vector<int32_t>> ParseEosTokenIds(
    std::string_view generation_config_json,
    std::string_view file_name,
    int32_t vocab_size);

}  // namespace conclave::checkpoint
