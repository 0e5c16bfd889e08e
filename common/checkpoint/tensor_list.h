// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/checkpoint/model_config.h"

namespace conclave::checkpoint {

enum class TensorKind {
  kFloat,      // BF16 or F32
  kFp8,        // F8_E4M3, followed by its kFp8Scales
  kFp8Scales,  // BF16
  kAffine,     // U32 codes, followed by scales and biases: kHalf
  kHalf,       // BF16 or F16
  kGptq,       // I32 codes, followed by zero points and order: kIndex, kHalf
  kIndex,      // I32
};

// A tensor that the configuration asks for, by its name without prefix.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kFloat;
};

// What stands behind the name of an FP8 weight's scales, and behind the module
// of a GPTQ or MLX one.
inline constexpr std::string_view kScaleSuffix = "_scale_inv";
inline constexpr std::string_view kGptqCodes = ".qweight";
inline constexpr std::string_view kAffineScales = ".scales";
inline constexpr std::string_view kAffineBiases = ".biases";

using HasTensorFn = std::function<bool(std::string_view name)>;
using ExpectedTensorFn = std::function<absl::Status(const ExpectedTensor&)>;

// Whether the checkpoint has MLX's layout: experts stacked by projection,
// every zero-centred norm with 1 added, conv1d transposed.
bool IsMlx(const HasTensorFn& has);

// Whether the published FP8 checkpoints convert this linear, by its name
// without prefix (docs/qwen3.5-moe 2.4).
bool IsPublishedAsFp8(std::string_view name);

// Calls `visit` for every tensor of the language model and, if `with_mtp`, of
// the MTP block; stops at the first error. `has` decides between fused,
// stacked and per-expert experts, layer by layer, and between quantised and
// float, linear by linear.
absl::Status ForEachExpectedTensor(const ModelConfig& config,
                                   bool with_mtp,
                                   const HasTensorFn& has,
                                   const ExpectedTensorFn& visit);

}  // namespace conclave::checkpoint
