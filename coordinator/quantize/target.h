// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace conclave::quantize {

enum class TargetFormat { kMlx4, kMlx8, kFp8 };

// "mlx4", "mlx8", "fp8". InvalidArgument lists them.
absl::StatusOr<TargetFormat> ParseTarget(std::string_view name);

struct OutputTensor {
  std::string name;  // as in the file
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
};

// One weight of the output: what is read at once and written as one to three
// tensors (codes, scales, biases).
struct OutputWeight {
  std::string key;  // without prefix: "layers.0.mlp.gate.weight", "A_log"
  bool linear = false;
  checkpoint::AffineFormat affine;  // MLX codes; bits == 0: none
  std::vector<OutputTensor> tensors;
  uint64_t bytes() const;
};

struct Target {
  TargetFormat format = TargetFormat::kMlx4;
  std::string config_json;
  std::vector<OutputWeight> weights;
  std::vector<OutputWeight> mtp;  // in a file of its own; FP8: none here
};

// What a checkpoint becomes: names, shapes and config.json, without touching
// its weights. Router, shared expert's gate and MTP block get 8 bits or more;
// the vision tower is left out. InvalidArgument names a linear whose columns
// are no whole number of groups.
absl::StatusOr<Target> MakeTarget(const checkpoint::Checkpoint& source,
                                  TargetFormat format);

}  // namespace conclave::quantize
