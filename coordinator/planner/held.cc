// SPDX-License-Identifier: Apache-2.0
#include "coordinator/planner/held.h"

#include <functional>
#include <numeric>
#include <string>

#include "common/checkpoint/linear.h"
#include "common/checkpoint/slice_part.h"
#include "common/checkpoint/tensor_list.h"
#include "common/status_macros.h"

namespace conclave::planner {
namespace {

using checkpoint::Checkpoint;
using checkpoint::ExpectedTensor;
using checkpoint::ModelConfig;

uint64_t Elements(const ExpectedTensor& tensor) {
  return static_cast<uint64_t>(std::accumulate(tensor.shape.begin(),
                                               tensor.shape.end(),
                                               int64_t{1},
                                               std::multiplies<>()));
}

// A dense tensor as it will lie in memory: matrices as they are stored, the
// rest in float32.
absl::Status AddDense(const Checkpoint& checkpoint,
                      const ExpectedTensor& tensor,
                      WeightBytes* out) {
  const std::string& name = tensor.name;
  for (const std::string_view part : {checkpoint::kScaleSuffix,
                                      checkpoint::kAffineScales,
                                      checkpoint::kAffineBiases}) {
    if (name.ends_with(part)) return absl::OkStatus();  // of a matrix
  }
  const bool matrix = tensor.shape.size() == 2 && name.ends_with(".weight");
  if (!matrix) {
    out->dense += Elements(tensor) * sizeof(float);
    return absl::OkStatus();
  }
  const std::string module =
      name.substr(0, name.size() - std::string_view(".weight").size());
  ASSIGN_OR_RETURN(const checkpoint::Linear linear,
                   checkpoint::FindLinear(checkpoint, module));
  (module == "embed_tokens" ? out->embedding : out->dense) +=
      linear.layout.bytes();
  return absl::OkStatus();
}

}  // namespace

uint64_t HeldWeights::Experts(int32_t begin, int32_t end) const {
  return std::accumulate(
             expert.begin() + begin, expert.begin() + end, uint64_t{0}) *
         static_cast<uint64_t>(experts_per_layer);
}

HeldWeights HeldAs(const ModelConfig& shape, WeightFormat format) {
  HeldWeights out;
  out.bytes = ResidentBytes(shape, format);
  out.expert.assign(static_cast<size_t>(shape.num_hidden_layers),
                    out.bytes.expert);
  out.experts_per_layer = shape.num_experts;
  return out;
}

absl::StatusOr<HeldWeights> HeldOf(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  HeldWeights out;
  out.experts_per_layer = config.num_experts;
  constexpr bool kWithMtp = false;
  RETURN_IF_ERROR(checkpoint::ForEachExpectedTensor(
      config,
      kWithMtp,
      [&](std::string_view name) { return checkpoint.Has(name); },
      [&](const ExpectedTensor& tensor) {
        const bool routed =
            tensor.name.find(".experts.") != std::string::npos ||
            tensor.name.find(".switch_mlp.") != std::string::npos;
        return routed ? absl::OkStatus()
                      : AddDense(checkpoint, tensor, &out.bytes);
      }));
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    ASSIGN_OR_RETURN(
        const checkpoint::SliceLayout expert,
        checkpoint::LayoutOfSlice(
            checkpoint,
            {LayerId{layer}, ExpertId{0}, 0, config.moe_intermediate_size}));
    out.expert.push_back(expert.bytes());
  }
  out.bytes.experts = out.Experts(0, config.num_hidden_layers);
  out.bytes.expert = out.bytes.experts /
                     static_cast<uint64_t>(config.num_experts) /
                     static_cast<uint64_t>(config.num_hidden_layers);
  out.bytes.mtp = ResidentBytes(config, FormatOf(config.quantisation)).mtp;
  return out;
}

}  // namespace conclave::planner
