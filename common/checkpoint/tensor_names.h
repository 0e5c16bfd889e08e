// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/tensor_list.h"

namespace conclave::checkpoint {

// What stands before the language model's tensors, and what stands before
// lm_head and mtp.
struct Prefix {
  std::string_view model;
  std::string_view top;
};
// The spellings in use, the first that fits counts.
std::span<const Prefix> Prefixes();

// Parts of a multimodal checkpoint that the language model does not need.
bool IsVision(std::string_view name);

// Whether the name stands without the model's prefix: lm_head and mtp.
bool IsTop(std::string_view name);

// The name without prefix; empty: it does not belong to the model.
std::string Canonical(const std::string& name, const Prefix& prefix);

// "BF16 [4, 8]".
std::string ShapeText(const TensorView& tensor);

// What is wrong with a tensor's dtype; empty: nothing.
std::string WantedDType(TensorKind kind, DType dtype);

}  // namespace conclave::checkpoint
