// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/device_needs.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/linear.h"
#include "common/ids.h"
#include "common/status_macros.h"
#include "coordinator/model/device_memory.h"
#include "coordinator/model/device_weights.h"
#include "coordinator/model/device_weights_maker.h"
#include "coordinator/model/shapes.h"

namespace conclave::model {
namespace {

using checkpoint::Checkpoint;
using checkpoint::ModelConfig;
using Maker = DeviceWeightsMaker;

// Linears of a module each, which lie as the checkpoint has them.
absl::Status CountLinears(const Checkpoint& checkpoint,
                          const std::vector<std::string>& modules,
                          Maker* maker) {
  std::vector<Source> sources;
  for (const std::string& module : modules) {
    ASSIGN_OR_RETURN(const checkpoint::Linear linear,
                     checkpoint::FindLinear(checkpoint, module));
    sources.push_back({linear.layout});
  }
  DeviceLinears none;
  return maker->Linears(sources, modules[0], &none);
}

absl::Status CountMixer(const Checkpoint& checkpoint, size_t i, Maker* maker) {
  const ModelConfig& c = checkpoint.config();
  if (c.full_attention[i]) {
    const std::string at = absl::StrCat("layers.", i, ".self_attn.");
    RETURN_IF_ERROR(CountLinears(
        checkpoint, {at + "q_proj", at + "k_proj", at + "v_proj"}, maker));
    maker->CountFloats(2 * int64_t{c.head_dim});
    return CountLinears(checkpoint, {at + "o_proj"}, maker);
  }
  const std::string at = absl::StrCat("layers.", i, ".linear_attn.");
  RETURN_IF_ERROR(CountLinears(checkpoint,
                               {at + "in_proj_qkv",
                                at + "in_proj_z",
                                at + "in_proj_b",
                                at + "in_proj_a"},
                               maker));
  const kernels::GdnShape gdn = GdnShapeOf(c);
  maker->CountFloats(int64_t{gdn.channels()} * gdn.conv_kernel +
                     2 * int64_t{gdn.value_heads} + gdn.value_dim);
  return CountLinears(checkpoint, {at + "out_proj"}, maker);
}

absl::Status CountMoe(const Checkpoint& checkpoint,
                      size_t i,
                      bool routed,
                      Maker* maker) {
  const std::string at = absl::StrCat("layers.", i, ".mlp.");
  RETURN_IF_ERROR(CountLinears(
      checkpoint, {at + "gate", at + "shared_expert_gate"}, maker));
  ASSIGN_OR_RETURN(const checkpoint::Expert expert,
                   checkpoint::FindExpert(checkpoint, at, ExpertId{0}));
  std::vector<Source> shared;
  for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
    ASSIGN_OR_RETURN(const checkpoint::Linear linear,
                     checkpoint::FindLinear(
                         checkpoint, absl::StrCat(at, "shared_expert.", part)));
    shared.push_back({linear.layout});
  }
  std::vector<kernels::DeviceExpertStack> none;
  if (!routed) {
    return maker->SharedExpert(checkpoint.config().num_experts,
                               {shared[0], shared[1], shared[2]},
                               LayerName(i, "shared_expert"),
                               &none);
  }
  return maker->Experts(
      checkpoint.config().num_experts,
      [&](int32_t) -> Maker::ExpertSources {
        return {{expert.gate.layout}, {expert.up.layout}, {expert.down.layout}};
      },
      {shared[0], shared[1], shared[2]},
      LayerName(i, "experts"),
      &none);
}

}  // namespace

absl::StatusOr<uint64_t> DeviceWeightBytesOf(const Checkpoint& checkpoint,
                                             const RoutedHere& here) {
  const ModelConfig& c = checkpoint.config();
  DeviceWeights out;
  Maker maker(nullptr, &out);
  ASSIGN_OR_RETURN(const checkpoint::Linear table,
                   checkpoint::FindLinear(checkpoint, "embed_tokens"));
  out.dense_bytes += table.layout.bytes();
  RETURN_IF_ERROR(CountLinears(checkpoint, {"lm_head"}, &maker));
  maker.CountFloats(c.hidden_size);
  for (size_t i = 0; i < c.full_attention.size(); ++i) {
    maker.CountFloats(2 * int64_t{c.hidden_size});
    RETURN_IF_ERROR(CountMixer(checkpoint, i, &maker));
    RETURN_IF_ERROR(CountMoe(checkpoint, i, IsHere(here, i), &maker));
  }
  return out.dense_bytes + out.expert_bytes;
}

absl::StatusOr<DeviceNeeds> DeviceNeedsOf(const Checkpoint& checkpoint,
                                          kernels::DeviceQueue* queue,
                                          const DeviceNeedsOptions& options) {
  DeviceNeeds out;
  ASSIGN_OR_RETURN(out.weights, DeviceWeightBytesOf(checkpoint, options.here));
  const ModelConfig& config = checkpoint.config();
  const kernels::KvDType kv =
      options.exact ? kernels::KvDType::kF32 : options.kv;
  const kernels::GdnDType gdn =
      options.exact ? kernels::GdnDType::kF32 : options.gdn;
  out.each = DeviceStateBytesOf(config, kv, gdn);
  ASSIGN_OR_RETURN(
      out.arrays,
      DeviceMemory::ArrayBytes(queue,
                               config,
                               {.sizes = {},
                                .rows_max = options.rows_max,
                                .sequences_max = options.sequences_max,
                                .exact = options.exact,
                                .kv = kv,
                                .gdn = gdn}));
  // Counts of tokens, made when the first penalty comes (device_sampler.h).
  out.arrays += (static_cast<uint64_t>(options.sequences_max) + 1) *
                static_cast<uint64_t>(config.vocab_size) * sizeof(int32_t);
  return out;
}

}  // namespace conclave::model
