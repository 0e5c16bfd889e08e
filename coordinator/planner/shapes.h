// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/model_config.h"

namespace conclave::planner {

// How a checkpoint stores its linears; docs/qwen3.5-moe 2.
enum class WeightFormat {
  kBf16,
  kFp8,
  kGptqInt4,
  kMlx3,
  kMlx4,
  kMlx5,
  kMlx6,
  kMlx8
};

// "bf16", "fp8", "gptq-int4", "mlx3" to "mlx6", "mlx8". InvalidArgument lists
// them.
absl::StatusOr<WeightFormat> ParseFormat(std::string_view name);
// What config.json says; of MLX, the bits of most modules.
WeightFormat FormatOf(const checkpoint::Quantisation& quantisation);
std::string_view Name(WeightFormat format);

// The published models: "35b-a3b", "122b-a10b", "397b-a17b". InvalidArgument
// lists them.
absl::StatusOr<checkpoint::ModelConfig> ShapeOf(std::string_view name);
std::vector<std::string_view> ShapeNames();

// Bytes of a model's weights, part by part.
struct WeightBytes {
  uint64_t embedding = 0;
  uint64_t dense = 0;    // all but embedding, routed experts, MTP and vision
  uint64_t experts = 0;  // routed, all layers
  uint64_t mtp = 0;      // the draft layer with its experts
  uint64_t vision = 0;
  uint64_t expert = 0;  // one routed expert

  uint64_t Total() const { return embedding + dense + experts + mtp + vision; }
};

// As the publisher's files hold them: the sums of docs/qwen3.5-moe 5.3 to the
// byte. MLX conversions have no MTP.
WeightBytes CheckpointBytes(const checkpoint::ModelConfig& shape,
                            WeightFormat format);

// As this runtime holds them: linears in their format, vectors in float32,
// nothing for vision, no bookkeeping of GPTQ.
WeightBytes ResidentBytes(const checkpoint::ModelConfig& shape,
                          WeightFormat format);

// Columns of an expert that can only move together: a group of the format, or
// all of them if they are no whole number of groups.
int32_t ColumnMultiple(const checkpoint::ModelConfig& shape,
                       WeightFormat format);

// What one sequence owns: docs/qwen3.5-moe 5.5.
uint64_t KvBytesPerToken(const checkpoint::ModelConfig& shape,
                         int32_t element_bytes);
// element_bytes: of the recurrent states; convolution rows are float32.
uint64_t StateBytes(const checkpoint::ModelConfig& shape,
                    int32_t element_bytes);

}  // namespace conclave::planner
