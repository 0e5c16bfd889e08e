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

// A tensor that the configuration asks for, by its name without prefix.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};

using HasTensorFn = std::function<bool(std::string_view name)>;
using ExpectedTensorFn = std::function<absl::Status(const ExpectedTensor&)>;

// Calls `visit` for every tensor of the language model and, if `with_mtp`, of
// the MTP block; stops at the first error. `has` decides between fused and
// per-expert experts, layer by layer.
absl::Status ForEachExpectedTensor(const ModelConfig& config,
                                   bool with_mtp,
                                   const HasTensorFn& has,
                                   const ExpectedTensorFn& visit);

}  // namespace conclave::checkpoint
