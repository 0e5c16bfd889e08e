// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which tensors a small random qwen3_5_moe checkpoint has. Link
// conclave::checkpoint.

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "common/checkpoint/model_config.h"
#include "common/checkpoint/tensor_list.h"
#include "common/dtype.h"

namespace conclave::testing {

struct PlannedTensor {
  std::string name;  // with prefix, as in the file
  std::string key;   // without; decides the values
  std::string dtype;
  std::vector<int64_t> shape;
  int file = 0;
  bool decoded = false;  // float32 values of what FP8 codes would be
};

// Weights as float8 with scales, and the same numbers in float32.
enum class Fp8 { kNone, kCodes, kDecoded };

struct CheckpointOptions {
  uint32_t seed = 1;
  int layers = 4;  // every fourth is full attention
  int hidden = 64;
  int vocab = 128;
  int experts = 8;
  int experts_per_token = 2;
  int intermediate = 32;
  DType dtype = DType::kBF16;
  bool fused = true;  // else three tensors per expert
  bool mtp = false;
  Fp8 fp8 = Fp8::kNone;  // then experts are not fused
  int files = 1;         // above 1: with an index
  std::string prefix = "model.language_model.";
  // Last say over the list: drop, add, bend.
  std::function<void(std::vector<PlannedTensor>&)> edit = nullptr;
};

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
         field("max_position_embeddings", 4096) +
         field("num_attention_heads", 2) + field("num_key_value_heads", 1) +
         field("head_dim", 32) + field("linear_num_key_heads", 1) +
         field("linear_num_value_heads", 2) + field("linear_key_head_dim", 16) +
         field("linear_value_head_dim", 16) +
         field("linear_conv_kernel_dim", 4) + field("num_experts", o.experts) +
         field("num_experts_per_tok", o.experts_per_token) +
         field("moe_intermediate_size", o.intermediate) +
         field("shared_expert_intermediate_size", 32) +
         field("mtp_num_hidden_layers", o.mtp ? 1 : 0) +
         field("eos_token_id", 0) + "}" +
         (o.fp8 == Fp8::kCodes
              ? ",\"quantization_config\":{\"quant_method\":\"fp8\","
                "\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\","
                "\"weight_block_size\":[128,128]}"
              : "") +
         "}";
}

inline size_t Elements(const std::vector<int64_t>& shape) {
  return std::accumulate(
      shape.begin(), shape.end(), size_t{1}, std::multiplies<>());
}

inline std::string DTypeOf(const CheckpointOptions& o,
                           const checkpoint::ExpectedTensor& tensor) {
  using checkpoint::TensorKind;
  if (tensor.kind == TensorKind::kScales) return "BF16";
  if (tensor.kind == TensorKind::kFp8) {
    return o.fp8 == Fp8::kCodes ? "F8_E4M3" : "F32";
  }
  const bool fp32 = tensor.name.ends_with("A_log") ||
                    tensor.name.ends_with("linear_attn.norm.weight");
  return std::string(fp32 ? "F32" : Name(o.dtype));
}

inline std::vector<PlannedTensor> PlanTensors(const CheckpointOptions& o) {
  using checkpoint::TensorKind;
  CheckpointOptions listed_as = o;
  if (o.fp8 != Fp8::kNone) listed_as.fp8 = Fp8::kCodes;
  const auto config =
      checkpoint::ParseModelConfig(ConfigJson(listed_as), "options");
  CONCLAVE_CHECK(config.ok());
  const bool fused = o.fused && o.fp8 == Fp8::kNone;
  std::vector<PlannedTensor> plan;
  const absl::Status listed = checkpoint::ForEachExpectedTensor(
      *config,
      o.mtp,
      [&](std::string_view key) {
        return key.ends_with("gate_up_proj") == fused;
      },
      [&](const checkpoint::ExpectedTensor& tensor) {
        const bool decoded = o.fp8 == Fp8::kDecoded;
        if (decoded && tensor.kind == TensorKind::kScales) {
          return absl::OkStatus();
        }
        const bool bare =
            tensor.name.starts_with("mtp.") || tensor.name == "lm_head.weight";
        plan.push_back({(bare ? "" : o.prefix) + tensor.name,
                        tensor.name,
                        DTypeOf(o, tensor),
                        tensor.shape,
                        static_cast<int>(plan.size()) % o.files,
                        decoded && tensor.kind == TensorKind::kFp8});
        return absl::OkStatus();
      });
  CONCLAVE_CHECK(listed.ok());
  if (o.edit) o.edit(plan);
  return plan;
}

}  // namespace conclave::testing
