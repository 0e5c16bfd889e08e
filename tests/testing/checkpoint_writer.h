// SPDX-License-Identifier: Apache-2.0
#pragma once

// Writes small random qwen3_5_moe checkpoints. Link conclave::checkpoint.

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "common/checkpoint/model_config.h"
#include "common/checkpoint/tensor_list.h"
#include "common/dtype.h"
#include "tests/testing/seeded.h"

namespace conclave::testing {

struct PlannedTensor {
  std::string name;  // with prefix, as in the file
  std::string key;   // without; decides the values
  std::string dtype;
  std::vector<int64_t> shape;
  int file = 0;
};

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
  int files = 1;  // above 1: with an index
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
         field("eos_token_id", 0) + "}}";
}

inline size_t Elements(const std::vector<int64_t>& shape) {
  return std::accumulate(
      shape.begin(), shape.end(), size_t{1}, std::multiplies<>());
}

// `count` values of one matrix; they depend on seed and key alone.
inline void AppendValues(uint32_t seed,
                         const std::string& key,
                         const std::string& dtype,
                         size_t count,
                         int64_t fan_in,
                         std::string& out) {
  for (char c : key) seed = (seed ^ static_cast<uint8_t>(c)) * 16777619u;
  Seeded random(seed);
  const double amplitude = 1.0 / std::sqrt(static_cast<double>(fan_in));
  for (size_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(random.Real(amplitude));
    const auto bits = std::bit_cast<uint32_t>(value);
    if (dtype == "BF16") {
      const auto half = static_cast<uint16_t>((bits + 0x8000) >> 16);
      out.append(reinterpret_cast<const char*>(&half), 2);
    } else if (dtype == "F32") {
      out.append(reinterpret_cast<const char*>(&bits), 4);
    } else {
      out.append(SizeOf(*DTypeFromName(dtype)), '\0');
    }
  }
}

// A fused tensor has the values of its experts' own tensors, so that one seed
// gives the same model in both layouts.
inline std::string TensorBytes(uint32_t seed, const PlannedTensor& tensor) {
  std::string out;
  const int64_t fan_in = tensor.shape.empty() ? 1 : tensor.shape.back();
  const size_t count = Elements(tensor.shape);
  const bool gate_up = tensor.key.ends_with("experts.gate_up_proj");
  const bool down = tensor.key.ends_with("experts.down_proj");
  if (!gate_up && !down) {
    AppendValues(seed, tensor.key, tensor.dtype, count, fan_in, out);
    return out;
  }
  const std::string at = tensor.key.substr(0, tensor.key.rfind('.') + 1);
  std::vector<std::string> parts = {".down_proj.weight"};
  if (gate_up) parts = {".gate_proj.weight", ".up_proj.weight"};
  const size_t each = count / tensor.shape[0] / parts.size();
  for (int64_t e = 0; e < tensor.shape[0]; ++e) {
    for (const std::string& part : parts) {
      AppendValues(
          seed, at + std::to_string(e) + part, tensor.dtype, each, fan_in, out);
    }
  }
  return out;
}

// Header of one file, with its length.
inline std::string SafetensorsHeader(
    const std::vector<PlannedTensor>& tensors) {
  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}";
  size_t at = 0;
  for (const PlannedTensor& t : tensors) {
    const size_t end = at + Elements(t.shape) * SizeOf(*DTypeFromName(t.dtype));
    json += ",\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":[";
    for (size_t i = 0; i < t.shape.size(); ++i) {
      json += (i ? "," : "") + std::to_string(t.shape[i]);
    }
    json += "],\"data_offsets\":[" + std::to_string(at) + "," +
            std::to_string(end) + "]}";
    at = end;
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json;
}

inline std::vector<PlannedTensor> PlanTensors(const CheckpointOptions& o) {
  const auto config = checkpoint::ParseModelConfig(ConfigJson(o), "options");
  CONCLAVE_CHECK(config.ok());
  std::vector<PlannedTensor> plan;
  const absl::Status listed = checkpoint::ForEachExpectedTensor(
      *config,
      o.mtp,
      [&](std::string_view key) {
        return key.ends_with("gate_up_proj") == o.fused;
      },
      [&](const checkpoint::ExpectedTensor& tensor) {
        const bool bare =
            tensor.name.starts_with("mtp.") || tensor.name == "lm_head.weight";
        const bool fp32 = tensor.name.ends_with("A_log") ||
                          tensor.name.ends_with("linear_attn.norm.weight");
        plan.push_back({(bare ? "" : o.prefix) + tensor.name,
                        tensor.name,
                        std::string(fp32 ? "F32" : Name(o.dtype)),
                        tensor.shape,
                        static_cast<int>(plan.size()) % o.files});
        return absl::OkStatus();
      });
  CONCLAVE_CHECK(listed.ok());
  if (o.edit) o.edit(plan);
  return plan;
}

inline void WriteCheckpoint(const std::filesystem::path& folder,
                            const CheckpointOptions& o) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << ConfigJson(o);
  const std::vector<PlannedTensor> plan = PlanTensors(o);
  std::string map;
  for (int file = 0; file < o.files; ++file) {
    const std::string name =
        o.files == 1 ? "model.safetensors"
                     : "model-" + std::to_string(file) + ".safetensors";
    std::vector<PlannedTensor> here;
    for (const PlannedTensor& tensor : plan) {
      if (tensor.file != file) continue;
      here.push_back(tensor);
      map += (map.empty() ? "\"" : ",\"") + tensor.name + "\":\"" + name + "\"";
    }
    std::ofstream out(folder / name, std::ios::binary);
    out << SafetensorsHeader(here);
    for (const PlannedTensor& tensor : here) out << TensorBytes(o.seed, tensor);
  }
  if (o.files == 1) return;
  std::ofstream(folder / "model.safetensors.index.json")
      << "{\"weight_map\":{" << map << "}}";
}

}  // namespace conclave::testing
