// SPDX-License-Identifier: Apache-2.0
#pragma once

// Writes small random qwen3_5_moe checkpoints. Link conclave::checkpoint.

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "common/dtype.h"
#include "tests/testing/checkpoint_plan.h"
#include "tests/testing/quant_values.h"
#include "tests/testing/seeded.h"

namespace conclave::testing {

// `count` values of one matrix; they depend on seed and key alone.
inline void AppendValues(uint32_t seed,
                         const std::string& key,
                         const std::string& dtype,
                         size_t count,
                         int64_t fan_in,
                         std::string& out) {
  Seeded random = SeededBy(seed, key);
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

inline std::string HalfBytes(const std::vector<uint16_t>& halves) {
  return {reinterpret_cast<const char*>(halves.data()), 2 * halves.size()};
}

// GPTQ: group of every column; zero points are 7.
inline std::string IndexBytes(const PlannedTensor& tensor, size_t count) {
  const bool order = tensor.key.ends_with(".g_idx");
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    const auto value =
        order ? static_cast<int32_t>(i) / tensor.affine.group : 0x77777777;
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return out;
}

// Bytes of a tensor that quantisation makes; empty: it is none of those.
inline std::string QuantisedBytes(uint32_t seed, const PlannedTensor& t) {
  using checkpoint::QuantFormat;
  const size_t count = Elements(t.shape);
  const std::string module = t.key.substr(0, t.key.rfind('.'));
  if (t.decoded) {
    switch (t.format) {
      case QuantFormat::kFp8:
        return Fp8Decoded(seed, t.key, t.shape);
      case QuantFormat::kGptq:
        return GptqDecoded(
            seed, module, t.shape[0], t.shape[1], t.affine.group);
      case QuantFormat::kMlx:
        return AffineDecoded(
            seed, module, count, t.shape.back(), t.affine.bits, t.affine.group);
      case QuantFormat::kNone:
        return "";
    }
  }
  if (t.dtype == "F8_E4M3") return Fp8Codes(seed, t.key, count);
  if (t.key.ends_with("_scale_inv")) {
    return HalfBytes(Fp8Scales(seed, t.key, count));
  }
  if (t.key.ends_with(".qweight") || t.dtype == "U32") {
    return AnyBytes(seed, t.key, 4 * count);
  }
  if (t.dtype == "I32") return IndexBytes(t, count);
  if (t.key.ends_with(".scales")) {
    return HalfBytes(t.format == QuantFormat::kGptq
                         ? GptqScales(seed, t.key, count)
                         : AffineScales(seed, t.key, count, t.affine.bits));
  }
  if (t.key.ends_with(".biases")) {
    return HalfBytes(AffineBiases(seed, t.key, count));
  }
  return "";
}

// A fused tensor has the values of its experts' own tensors, so that one seed
// gives the same model in both layouts.
inline std::string TensorBytes(uint32_t seed, const PlannedTensor& tensor) {
  std::string out;
  const int64_t fan_in = tensor.shape.empty() ? 1 : tensor.shape.back();
  const size_t count = Elements(tensor.shape);
  if (tensor.format != checkpoint::QuantFormat::kNone) {
    out = QuantisedBytes(seed, tensor);
    if (!out.empty()) {
      out.resize(count * SizeOf(*DTypeFromName(tensor.dtype)));
      return out;
    }
  }
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
