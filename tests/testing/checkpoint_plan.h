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
#include "common/checkpoint/tensor_names.h"
#include "common/dtype.h"
#include "tests/testing/checkpoint_options.h"

namespace conclave::testing {

inline size_t Elements(const std::vector<int64_t>& shape) {
  return std::accumulate(
      shape.begin(), shape.end(), size_t{1}, std::multiplies<>());
}

inline std::string DTypeOf(const CheckpointOptions& o,
                           const checkpoint::ExpectedTensor& tensor) {
  using checkpoint::TensorKind;
  switch (tensor.kind) {
    case TensorKind::kFp8Scales:
      return "BF16";
    case TensorKind::kFp8:
      return o.decoded ? "F32" : "F8_E4M3";
    case TensorKind::kAffine:
      return o.decoded ? "F32" : "U32";
    case TensorKind::kGptq:
      return o.decoded ? "F32" : "I32";
    case TensorKind::kIndex:
      return "I32";
    case TensorKind::kHalf:
      return o.format == checkpoint::QuantFormat::kGptq ? "F16" : "BF16";
    case TensorKind::kFloat:
      break;
  }
  const bool fp32 = tensor.name.ends_with("A_log") ||
                    tensor.name.ends_with("linear_attn.norm.weight");
  return std::string(fp32 ? "F32" : Name(o.dtype));
}

// Whether a checkpoint of this kind has the tensor, where the list asks.
inline bool HasTensor(const CheckpointOptions& o, std::string_view key) {
  using checkpoint::QuantFormat;
  if (key.ends_with("gate_up_proj")) {
    return o.fused && o.format == QuantFormat::kNone;
  }
  if (key.find("switch_mlp") != key.npos && key.ends_with(".weight")) {
    return o.format == QuantFormat::kMlx;
  }
  if (key.ends_with(".qweight")) return key.find("experts.") != key.npos;
  return !key.ends_with("_scale_inv") || checkpoint::IsPublishedAsFp8(key);
}

// A quantised weight as the list has it, or its numbers in float32.
inline PlannedTensor PlanTensor(const CheckpointOptions& o,
                                const checkpoint::Quantisation& quantisation,
                                const checkpoint::ExpectedTensor& tensor) {
  using checkpoint::TensorKind;
  PlannedTensor out{.name = "",
                    .key = tensor.name,
                    .dtype = DTypeOf(o, tensor),
                    .shape = tensor.shape,
                    .format = o.format};
  const std::string module = out.key.substr(0, out.key.rfind('.'));
  if (o.format == checkpoint::QuantFormat::kMlx) {
    out.affine = quantisation.Of(module);
  } else {
    out.affine = quantisation.affine;
  }
  if (o.decoded) {
    out.decoded = tensor.kind == TensorKind::kFp8 ||
                  tensor.kind == TensorKind::kAffine ||
                  tensor.kind == TensorKind::kGptq;
    if (tensor.kind == TensorKind::kAffine) {
      out.shape.back() = out.shape.back() * 32 / out.affine.bits;
    } else if (tensor.kind == TensorKind::kGptq) {
      out.shape = {tensor.shape[1], tensor.shape[0] * 32 / out.affine.bits};
      out.key = module + ".weight";
    }
  }
  const bool mlx = o.format == checkpoint::QuantFormat::kMlx;
  const bool top = checkpoint::IsTop(out.key);
  const std::string model = mlx ? "language_model.model." : o.prefix;
  out.name = (top ? mlx ? "language_model." : "" : model) + out.key;
  return out;
}

inline std::vector<PlannedTensor> PlanTensors(const CheckpointOptions& o) {
  using checkpoint::TensorKind;
  CheckpointOptions listed_as = o;
  listed_as.decoded = false;
  const auto config =
      checkpoint::ParseModelConfig(ConfigJson(listed_as), "options");
  CONCLAVE_CHECK(config.ok());
  std::vector<PlannedTensor> plan;
  const absl::Status listed = checkpoint::ForEachExpectedTensor(
      *config,
      o.mtp,
      [&](std::string_view key) { return HasTensor(o, key); },
      [&](const checkpoint::ExpectedTensor& tensor) {
        const bool helps = tensor.kind == TensorKind::kFp8Scales ||
                           tensor.kind == TensorKind::kHalf ||
                           tensor.kind == TensorKind::kIndex;
        if (o.decoded && helps) return absl::OkStatus();
        plan.push_back(PlanTensor(o, config->quantisation, tensor));
        plan.back().file = static_cast<int>(plan.size() - 1) % o.files;
        return absl::OkStatus();
      });
  CONCLAVE_CHECK(listed.ok());
  if (o.edit) o.edit(plan);
  return plan;
}

}  // namespace conclave::testing
