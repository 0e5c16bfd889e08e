// SPDX-License-Identifier: Apache-2.0
#include "coordinator/quantize/target.h"

#include <algorithm>
#include <boost/json.hpp>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/model_config.h"
#include "common/checkpoint/strict_json.h"
#include "common/checkpoint/tensor_list.h"
#include "common/checkpoint/tensor_names.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::quantize {
namespace {

namespace json = boost::json;
using checkpoint::AffineFormat;
using checkpoint::ExpectedTensor;
using checkpoint::ModelConfig;
using checkpoint::TensorKind;

constexpr int32_t kGroup = 64;

int32_t BitsOf(TargetFormat format) {
  return format == TargetFormat::kMlx4 ? 4 : 8;
}

bool IsMtp(std::string_view key) { return key.starts_with("mtp."); }

// Answers for the output what a loader asks of a checkpoint.
bool OutputHas(TargetFormat format, std::string_view key) {
  if (format == TargetFormat::kFp8) {
    if (key.ends_with(checkpoint::kScaleSuffix))
      return checkpoint::IsPublishedAsFp8(key);
    return key.ends_with(".experts.0.gate_proj.weight");
  }
  return key.ends_with(checkpoint::kAffineScales) ||
         key.ends_with("switch_mlp.gate_proj.weight");
}

// Modules that keep 8 bits: routers, and the whole MTP block.
void AddOverrides(const ModelConfig& config, json::object& out) {
  const json::object eight{{"group_size", kGroup}, {"bits", 8}};
  const auto add = [&](const std::string& module) { out[module] = eight; };
  for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string mlp =
        absl::StrCat("language_model.model.layers.", i, ".mlp.");
    add(mlp + "gate");
    add(mlp + "shared_expert_gate");
  }
  if (config.mtp_num_hidden_layers > 0) add("mtp.fc");
  for (int32_t i = 0; i < config.mtp_num_hidden_layers; ++i) {
    const std::string at = absl::StrCat("mtp.layers.", i, ".");
    for (const char* part : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      add(absl::StrCat(at, "self_attn.", part));
    }
    for (const char* part : {"gate", "shared_expert_gate"}) {
      add(absl::StrCat(at, "mlp.", part));
    }
    for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
      add(absl::StrCat(at, "mlp.shared_expert.", part));
      add(absl::StrCat(at, "mlp.switch_mlp.", part));
    }
  }
}

absl::StatusOr<std::string> OutputConfig(const checkpoint::Checkpoint& source,
                                         TargetFormat format) {
  const std::string path = source.folder() + "/config.json";
  ASSIGN_OR_RETURN(
      const std::string text,
      checkpoint::ReadSmallFile(path, limits::kConfigFileBytesMax));
  ASSIGN_OR_RETURN(json::value document,
                   checkpoint::ParseStrictJson(text, path));
  json::object& config = document.as_object();
  json::object* const nested = config.contains("text_config")
                                   ? config["text_config"].if_object()
                                   : nullptr;
  for (json::object* object : {&config, nested}) {
    if (object == nullptr) continue;
    object->erase("quantization");
    object->erase("quantization_config");
  }
  if (format == TargetFormat::kFp8) {
    config["quantization_config"] = {
        {"quant_method", "fp8"},
        {"fmt", "e4m3"},
        {"activation_scheme", "dynamic"},
        {"weight_block_size", json::array{kFp8Block, kFp8Block}}};
  } else {
    json::object own{
        {"group_size", kGroup}, {"bits", BitsOf(format)}, {"mode", "affine"}};
    if (BitsOf(format) < 8) AddOverrides(source.config(), own);
    config["quantization"] = own;
    config["quantization_config"] = own;
  }
  return json::serialize(document);
}

std::string FileName(TargetFormat format, const std::string& key) {
  const bool top = checkpoint::IsTop(key);
  if (format == TargetFormat::kFp8) {
    return (top ? "" : "model.language_model.") + key;
  }
  if (IsMtp(key)) return key;
  return (top ? "language_model." : "language_model.model.") + key;
}

DType DTypeOf(const checkpoint::Checkpoint& source,
              const ExpectedTensor& tensor) {
  switch (tensor.kind) {
    case TensorKind::kFp8:
      return DType::kF8E4M3;
    case TensorKind::kAffine:
      return DType::kU32;
    case TensorKind::kFloat: {
      // Recurrent vectors keep what precision they have.
      const bool recurrent = tensor.name.ends_with("A_log") ||
                             tensor.name.ends_with("linear_attn.norm.weight");
      const auto from = source.Find(tensor.name);
      return recurrent && from.ok() ? from->dtype : DType::kBF16;
    }
    default:
      return DType::kBF16;
  }
}

}  // namespace

uint64_t OutputWeight::bytes() const {
  uint64_t sum = 0;
  for (const OutputTensor& tensor : tensors) sum += tensor.bytes;
  return sum;
}

absl::StatusOr<TargetFormat> ParseTarget(std::string_view name) {
  if (name == "mlx4") return TargetFormat::kMlx4;
  if (name == "mlx8") return TargetFormat::kMlx8;
  if (name == "fp8") return TargetFormat::kFp8;
  return absl::InvalidArgumentError(absl::StrCat(
      "--to '", std::string(name), "' is unknown; known are mlx4, mlx8, fp8"));
}

absl::StatusOr<Target> MakeTarget(const checkpoint::Checkpoint& source,
                                  TargetFormat format) {
  Target out;
  out.format = format;
  ASSIGN_OR_RETURN(out.config_json, OutputConfig(source, format));
  ASSIGN_OR_RETURN(const ModelConfig config,
                   checkpoint::ParseModelConfig(out.config_json,
                                                "config.json of the output"));
  const bool with_mtp = source.Has("mtp.norm.weight");
  RETURN_IF_ERROR(checkpoint::ForEachExpectedTensor(
      config,
      with_mtp,
      [&](std::string_view key) { return OutputHas(format, key); },
      [&](const ExpectedTensor& tensor) {
        OutputTensor output{.name = FileName(format, tensor.name),
                            .dtype = DTypeOf(source, tensor),
                            .shape = tensor.shape};
        output.bytes = std::accumulate(tensor.shape.begin(),
                                       tensor.shape.end(),
                                       uint64_t{SizeOf(output.dtype)},
                                       std::multiplies<>());
        const bool apart = format != TargetFormat::kFp8 && IsMtp(tensor.name);
        auto& list = apart ? out.mtp : out.weights;
        if (tensor.kind == TensorKind::kFp8Scales ||
            tensor.kind == TensorKind::kHalf) {
          list.back().tensors.push_back(std::move(output));
          return absl::OkStatus();
        }
        OutputWeight& weight = list.emplace_back();
        weight.key = tensor.name;
        weight.linear = tensor.shape.size() >= 2 &&
                        tensor.name.find("conv1d") == std::string::npos;
        if (tensor.kind == TensorKind::kAffine) {
          weight.affine = config.quantisation.Of(
              tensor.name.substr(0, tensor.name.rfind('.')));
        }
        weight.tensors.push_back(std::move(output));
        return absl::OkStatus();
      }));
  return out;
}

}  // namespace conclave::quantize
