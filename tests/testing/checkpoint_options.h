// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a small random qwen3_5_moe checkpoint is like, and its config.json.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/checkpoint/quantisation.h"
#include "common/dtype.h"

namespace conclave::testing {

struct PlannedTensor {
  std::string name;  // with prefix, as in the file
  std::string key;   // without; decides the values
  std::string dtype;
  std::vector<int64_t> shape;
  int file = 0;
  // The format, and for float32 values of what its codes would be: decoded.
  checkpoint::QuantFormat format = checkpoint::QuantFormat::kNone;
  checkpoint::AffineFormat affine = {};
  bool decoded = false;
};

struct CheckpointOptions {
  uint32_t seed = 1;
  int layers = 4;  // every fourth is full attention
  int hidden = 64;
  int vocab = 128;
  int experts = 8;
  int experts_per_token = 2;
  int intermediate = 32;
  int shared = 32;  // shared expert
  int heads = 2;
  int kv_heads = 1;
  int head_dim = 32;
  int gdn_key_heads = 1;
  int gdn_value_heads = 2;
  int gdn_key_dim = 16;   // per head
  int gdn_value_dim = 0;  // per head; 0: half of head_dim
  int positions = 4096;
  DType dtype = DType::kBF16;
  bool fused = true;  // else three tensors per expert
  bool mtp = false;
  // FP8 and GPTQ: experts are not fused. MLX: its layout and names.
  checkpoint::QuantFormat format = checkpoint::QuantFormat::kNone;
  checkpoint::AffineFormat affine = {4, 64};
  std::string modules = "";  // further members of MLX's "quantization"
  bool decoded = false;      // the same numbers in float32
  int files = 1;             // above 1: with an index
  std::string prefix = "model.language_model.";
  // Last say over the list: drop, add, bend.
  std::function<void(std::vector<PlannedTensor>&)> edit = nullptr;
};

inline std::string QuantisationJson(const CheckpointOptions& o) {
  using checkpoint::QuantFormat;
  const std::string affine =
      "\"bits\":" + std::to_string(o.affine.bits) +
      ",\"group_size\":" + std::to_string(o.affine.group);
  switch (o.format) {
    case QuantFormat::kFp8:
      return ",\"quantization_config\":{\"quant_method\":\"fp8\","
             "\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\","
             "\"weight_block_size\":[128,128]}";
    case QuantFormat::kGptq:
      return ",\"quantization_config\":{\"quant_method\":\"gptq\"," + affine +
             ",\"sym\":true,\"desc_act\":false}";
    case QuantFormat::kMlx:
      return ",\"quantization\":{\"mode\":\"affine\"," + affine + o.modules +
             "}";
    case QuantFormat::kNone:
      return "";
  }
  return "";
}

inline std::string ConfigJson(const CheckpointOptions& o) {
  const auto field = [](const char* name, int value) {
    return std::string(",\"") + name + "\":" + std::to_string(value);
  };
  return "{\"model_type\":\"qwen3_5_moe\",\"text_config\":{"
         "\"model_type\":\"qwen3_5_moe_text\",\"rms_norm_eps\":1e-6,"
         "\"rope_parameters\":{\"rope_type\":\"default\","
         "\"rope_theta\":10000000,\"partial_rotary_factor\":0.25}" +
         field("vocab_size", o.vocab) + field("hidden_size", o.hidden) +
         field("num_hidden_layers", o.layers) +
         field("full_attention_interval", 4) +
         field("max_position_embeddings", o.positions) +
         field("num_attention_heads", o.heads) +
         field("num_key_value_heads", o.kv_heads) +
         field("head_dim", o.head_dim) +
         field("linear_num_key_heads", o.gdn_key_heads) +
         field("linear_num_value_heads", o.gdn_value_heads) +
         field("linear_key_head_dim", o.gdn_key_dim) +
         field("linear_value_head_dim",
               o.gdn_value_dim > 0 ? o.gdn_value_dim : o.head_dim / 2) +
         field("linear_conv_kernel_dim", 4) + field("num_experts", o.experts) +
         field("num_experts_per_tok", o.experts_per_token) +
         field("moe_intermediate_size", o.intermediate) +
         field("shared_expert_intermediate_size", o.shared) +
         field("mtp_num_hidden_layers", o.mtp ? 1 : 0) +
         field("eos_token_id", 0) + "}" +
         (o.decoded ? "" : QuantisationJson(o)) + "}";
}

}  // namespace conclave::testing
