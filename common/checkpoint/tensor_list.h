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

// kFloat: BF16 or F32. kFp8: F8_E4M3, followed by its kScales.
enum class TensorKind { kFloat, kFp8, kScales };

// A tensor that the configuration asks for, by its name without prefix.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kFloat;
};

// What stands behind the name of an FP8 weight's scales.
inline constexpr std::string_view kScaleSuffix = "_scale_inv";

using HasTensorFn = std::function<bool(std::string_view name)>;
using ExpectedTensorFn = std::function<absl::Status(const ExpectedTensor&)>;

// Calls `visit` for every tensor of the language model and, if `with_mtp`, of
// the MTP block; stops at the first error. `has` decides between fused and
// per-expert experts, layer by layer, and in FP8 checkpoints between FP8 and
// float, linear by linear.
absl::Status ForEachExpectedTensor(const ModelConfig& config,
                                   bool with_mtp,
                                   const HasTensorFn& has,
                                   const ExpectedTensorFn& visit);

}  // namespace conclave::checkpoint
