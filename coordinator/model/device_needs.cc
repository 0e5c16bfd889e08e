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
#include "coordinator/model/rank_sources.h"
#include "coordinator/model/shapes.h"

namespace conclave::model {
namespace {

using checkpoint::Checkpoint;
using checkpoint::ModelConfig;
using Maker = DeviceWeightsMaker;

absl::StatusOr<Source> Stored(const Checkpoint& checkpoint,
                              const std::string& module) {
  ASSIGN_OR_RETURN(const checkpoint::Linear linear,
                   checkpoint::FindLinear(checkpoint, module));
  return Source{linear.layout};
}

absl::Status Count(const std::vector<Source>& sources,
                   const std::string& what,
                   Maker* maker) {
  DeviceLinears none;
  return maker->Linears(sources, what, &none);
}

absl::Status CountAttention(const Checkpoint& checkpoint,
                            const RankCut& cut,
                            size_t i,
                            Maker* maker) {
  const std::string at = absl::StrCat("layers.", i, ".self_attn.");
  const ModelConfig& c = checkpoint.config();
  AttentionSources all;
  ASSIGN_OR_RETURN(all.q, Stored(checkpoint, at + "q_proj"));
  ASSIGN_OR_RETURN(all.k, Stored(checkpoint, at + "k_proj"));
  ASSIGN_OR_RETURN(all.v, Stored(checkpoint, at + "v_proj"));
  ASSIGN_OR_RETURN(all.o, Stored(checkpoint, at + "o_proj"));
  ASSIGN_OR_RETURN(const auto in, PartIn(all, c, cut));
  ASSIGN_OR_RETURN(const Source out, PartOut(all, c, cut, at + "o_proj"));
  RETURN_IF_ERROR(Count(in, at + "q_proj", maker));
  maker->CountFloats(2 * int64_t{c.head_dim});
  return Count({out}, at + "o_proj", maker);
}

absl::Status CountGdn(const Checkpoint& checkpoint,
                      const RankCut& cut,
                      size_t i,
                      Maker* maker) {
  const std::string at = absl::StrCat("layers.", i, ".linear_attn.");
  const ModelConfig& c = checkpoint.config();
  GdnSources all;
  ASSIGN_OR_RETURN(all.qkv, Stored(checkpoint, at + "in_proj_qkv"));
  ASSIGN_OR_RETURN(all.z, Stored(checkpoint, at + "in_proj_z"));
  ASSIGN_OR_RETURN(all.b, Stored(checkpoint, at + "in_proj_b"));
  ASSIGN_OR_RETURN(all.a, Stored(checkpoint, at + "in_proj_a"));
  ASSIGN_OR_RETURN(all.out, Stored(checkpoint, at + "out_proj"));
  ASSIGN_OR_RETURN(const auto in, PartIn(all, c, cut));
  ASSIGN_OR_RETURN(const Source out, PartOut(all, c, cut, at + "out_proj"));
  RETURN_IF_ERROR(Count(in, at + "in_proj_qkv", maker));
  const kernels::GdnShape gdn = GdnShapeOf(ConfigOf(c, cut));
  maker->CountFloats(int64_t{gdn.channels()} * gdn.conv_kernel +
                     2 * int64_t{gdn.value_heads} + gdn.value_dim);
  return Count({out}, at + "out_proj", maker);
}

absl::Status CountMoe(const Checkpoint& checkpoint,
                      const RankCut& cut,
                      size_t i,
                      bool routed,
                      Maker* maker) {
  const std::string at = absl::StrCat("layers.", i, ".mlp.");
  const ModelConfig& c = checkpoint.config();
  ASSIGN_OR_RETURN(const Source router, Stored(checkpoint, at + "gate"));
  ASSIGN_OR_RETURN(const Source gate,
                   Stored(checkpoint, at + "shared_expert_gate"));
  RETURN_IF_ERROR(Count({router, gate}, at + "gate", maker));
  ExpertSources shared;
  ASSIGN_OR_RETURN(shared.gate,
                   Stored(checkpoint, at + "shared_expert.gate_proj"));
  ASSIGN_OR_RETURN(shared.up, Stored(checkpoint, at + "shared_expert.up_proj"));
  ASSIGN_OR_RETURN(shared.down,
                   Stored(checkpoint, at + "shared_expert.down_proj"));
  ASSIGN_OR_RETURN(
      shared,
      PartOf(shared, cut.shared_columns, LayerName(i, "shared_expert")));
  std::vector<kernels::DeviceExpertStack> none;
  if (!routed) {
    return maker->SharedExpert(
        c.num_experts, shared, LayerName(i, "shared_expert"), &none);
  }
  ASSIGN_OR_RETURN(const checkpoint::Expert expert,
                   checkpoint::FindExpert(checkpoint, at, ExpertId{0}));
  ASSIGN_OR_RETURN(
      const ExpertSources part,
      PartOf({{expert.gate.layout}, {expert.up.layout}, {expert.down.layout}},
             cut.columns,
             LayerName(i, "experts")));
  return maker->Experts(
      c.num_experts,
      [&](int32_t) { return part; },
      shared,
      LayerName(i, "experts"),
      &none);
}

absl::StatusOr<DeviceWeights> Counted(const Checkpoint& checkpoint,
                                      const RoutedHere& here,
                                      const RankConfig& rank) {
  const ModelConfig& c = checkpoint.config();
  ASSIGN_OR_RETURN(const ColumnMultiples multiples, MultiplesOf(checkpoint));
  ASSIGN_OR_RETURN(const RankCut cut, CutFor(c, rank, multiples));
  DeviceWeights out;
  Maker maker(nullptr, &out);
  ASSIGN_OR_RETURN(const Source table, Stored(checkpoint, "embed_tokens"));
  out.dense_bytes += table.layout.bytes();
  ASSIGN_OR_RETURN(const Source head, Stored(checkpoint, "lm_head"));
  DeviceLinears none;
  RETURN_IF_ERROR(maker.Head(head, cut, &none));
  maker.CountFloats(c.hidden_size);
  for (size_t i = 0; i < c.full_attention.size(); ++i) {
    maker.CountFloats(2 * int64_t{c.hidden_size});
    if (cut.mixers) {
      RETURN_IF_ERROR(c.full_attention[i]
                          ? CountAttention(checkpoint, cut, i, &maker)
                          : CountGdn(checkpoint, cut, i, &maker));
    }
    RETURN_IF_ERROR(CountMoe(checkpoint, cut, i, IsHere(here, i), &maker));
  }
  return out;
}

}  // namespace

absl::StatusOr<uint64_t> DeviceWeightBytesOf(const Checkpoint& checkpoint,
                                             const RoutedHere& here,
                                             const RankConfig& rank) {
  ASSIGN_OR_RETURN(const DeviceWeights counted,
                   Counted(checkpoint, here, rank));
  return counted.dense_bytes + counted.expert_bytes;
}

absl::StatusOr<DeviceNeeds> DeviceNeedsOf(const Checkpoint& checkpoint,
                                          kernels::DeviceQueue* queue,
                                          const DeviceNeedsOptions& options) {
  DeviceNeeds out;
  ASSIGN_OR_RETURN(const DeviceWeights counted,
                   Counted(checkpoint, options.here, options.rank));
  out.weights = counted.dense_bytes + counted.expert_bytes;
  out.experts = counted.expert_bytes;
  ASSIGN_OR_RETURN(const ColumnMultiples multiples, MultiplesOf(checkpoint));
  ASSIGN_OR_RETURN(const RankCut cut,
                   CutFor(checkpoint.config(), options.rank, multiples));
  const ModelConfig config = ConfigOf(checkpoint.config(), cut);
  const kernels::KvDType kv =
      options.exact ? kernels::KvDType::kF32 : options.kv;
  const kernels::GdnDType gdn =
      options.exact ? kernels::GdnDType::kF32 : options.gdn;
  out.each = DeviceStateBytesOf(config, kv, gdn);
  for (int32_t lane = 0; lane < options.lanes; ++lane) {
    const auto part = [lane](int32_t n) { return lane == 0 ? n : (n + 1) / 2; };
    ASSIGN_OR_RETURN(const uint64_t bytes,
                     DeviceMemory::ArrayBytes(
                         queue,
                         config,
                         {.sizes = {},
                          .rows_max = part(options.rows_max),
                          .sequences_max = part(options.sequences_max),
                          .exact = options.exact,
                          .kv = kv,
                          .gdn = gdn,
                          .logit_cols = LogitColumns(cut, config.vocab_size),
                          .samples = options.rank.rank == 0}));
    out.arrays += bytes;
  }
  if (options.rank.rank > 0) return out;
  // Counts of tokens, made when the first penalty comes (device_sampler.h).
  out.arrays += (static_cast<uint64_t>(options.sequences_max) + 1) *
                static_cast<uint64_t>(config.vocab_size) * sizeof(int32_t);
  return out;
}

}  // namespace conclave::model
