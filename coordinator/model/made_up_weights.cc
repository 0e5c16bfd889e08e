// SPDX-License-Identifier: Apache-2.0
// A model of a given shape whose weights are made up: for speed, not sense.
#include "common/status_macros.h"
#include "coordinator/model/device_weights_maker.h"
#include "coordinator/model/rank_sources.h"
#include "coordinator/model/shapes.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;
using kernels::DeviceQueue;
using Maker = DeviceWeightsMaker;

// The parts of one rank of a made-up model; without a queue, their bytes.
class MadeUpRank {
 public:
  MadeUpRank(const MadeUpModel& model, const RankCut& cut, Maker* maker)
      : model_(model), c_(model.config), cut_(cut), maker_(*maker) {}

  absl::Status Layer(size_t i, DeviceLayer* to) {
    to->full_attention = c_.full_attention[i];
    RETURN_IF_ERROR(Ones(c_.hidden_size, &to->input_norm));
    RETURN_IF_ERROR(Ones(c_.hidden_size, &to->post_attention_norm));
    if (cut_.mixers) {
      RETURN_IF_ERROR(to->full_attention ? Attention(i, to) : Gdn(i, to));
    }
    return Moe(i, to);
  }

  absl::Status Ones(int64_t size, const float** to) {
    if (maker_.counts()) {
      maker_.CountFloats(size);
      return absl::OkStatus();
    }
    return maker_.Ones(size, to);
  }

 private:
  Source Linear(LinearRole role, int64_t rows, int64_t cols) const {
    return {model_.layout(role, rows, cols)};
  }

  absl::Status Attention(size_t i, DeviceLayer* to) {
    const int64_t hidden = c_.hidden_size;
    const int64_t query = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t kv = int64_t{c_.num_key_value_heads} * c_.head_dim;
    const AttentionSources all{Linear(LinearRole::kMixer, 2 * query, hidden),
                               Linear(LinearRole::kMixer, kv, hidden),
                               Linear(LinearRole::kMixer, kv, hidden),
                               Linear(LinearRole::kMixer, hidden, query)};
    ASSIGN_OR_RETURN(const auto in, PartIn(all, c_, cut_));
    ASSIGN_OR_RETURN(const Source out,
                     PartOut(all, c_, cut_, LayerName(i, "o_proj")));
    RETURN_IF_ERROR(maker_.Linears(in, LayerName(i, "q, k, v"), &to->in));
    RETURN_IF_ERROR(maker_.Linears({out}, LayerName(i, "o_proj"), &to->out));
    RETURN_IF_ERROR(Ones(c_.head_dim, &to->attention.q_norm));
    return Ones(c_.head_dim, &to->attention.k_norm);
  }

  absl::Status Gdn(size_t i, DeviceLayer* to) {
    const int64_t hidden = c_.hidden_size;
    const int64_t heads = c_.linear_num_value_heads;
    const int64_t values = heads * c_.linear_value_head_dim;
    const GdnSources all{
        Linear(LinearRole::kMixer, GdnShapeOf(c_).channels(), hidden),
        Linear(LinearRole::kMixer, values, hidden),
        Linear(LinearRole::kGates, heads, hidden),
        Linear(LinearRole::kGates, heads, hidden),
        Linear(LinearRole::kMixer, hidden, values)};
    ASSIGN_OR_RETURN(const auto in, PartIn(all, c_, cut_));
    ASSIGN_OR_RETURN(const Source out,
                     PartOut(all, c_, cut_, LayerName(i, "out_proj")));
    RETURN_IF_ERROR(maker_.Linears(in, LayerName(i, "in_proj"), &to->in));
    RETURN_IF_ERROR(maker_.Linears({out}, LayerName(i, "out_proj"), &to->out));
    const kernels::GdnShape own = GdnShapeOf(ConfigOf(c_, cut_));
    RETURN_IF_ERROR(
        Ones(int64_t{own.channels()} * own.conv_kernel, &to->gdn.conv));
    RETURN_IF_ERROR(Ones(own.value_heads, &to->gdn.a_log));
    RETURN_IF_ERROR(Ones(own.value_heads, &to->gdn.dt_bias));
    return Ones(own.value_dim, &to->gdn.norm);
  }

  ExpertSources Expert(LinearRole role, int64_t width) const {
    return {Linear(role, width, c_.hidden_size),
            Linear(role, width, c_.hidden_size),
            Linear(role, c_.hidden_size, width)};
  }

  absl::Status Moe(size_t i, DeviceLayer* to) {
    const int64_t hidden = c_.hidden_size;
    RETURN_IF_ERROR(
        maker_.Linears({Linear(LinearRole::kGates, c_.num_experts, hidden),
                        Linear(LinearRole::kGates, 1, hidden)},
                       LayerName(i, "router"),
                       &to->router));
    ASSIGN_OR_RETURN(
        const ExpertSources routed,
        PartOf(Expert(LinearRole::kExpert, c_.moe_intermediate_size),
               cut_.columns,
               LayerName(i, "experts")));
    ASSIGN_OR_RETURN(
        const ExpertSources shared,
        PartOf(Expert(LinearRole::kShared, c_.shared_expert_intermediate_size),
               cut_.shared_columns,
               LayerName(i, "shared_expert")));
    return maker_.Experts(
        c_.num_experts,
        [&](int32_t) { return routed; },
        shared,
        LayerName(i, "experts"),
        &to->experts);
  }

  const MadeUpModel& model_;
  const ModelConfig& c_;
  const RankCut& cut_;
  Maker& maker_;
};

// How widths of experts may be cut.
ColumnMultiples MultiplesOf(const MadeUpModel& model) {
  const ModelConfig& c = model.config;
  const auto of = [&](LinearRole role, int64_t width) {
    return ColumnMultipleOf(model.layout(role, c.hidden_size, width));
  };
  return {of(LinearRole::kExpert, c.moe_intermediate_size),
          of(LinearRole::kShared, c.shared_expert_intermediate_size)};
}

absl::StatusOr<DeviceWeights> MakeUp(const MadeUpModel& model,
                                     const RankConfig& rank,
                                     DeviceQueue* queue) {
  const ModelConfig& c = model.config;
  ASSIGN_OR_RETURN(const RankCut cut, CutFor(c, rank, MultiplesOf(model)));
  DeviceWeights out;
  out.config = ConfigOf(c, cut);
  out.cut = cut;
  Maker maker(queue, &out);
  MadeUpRank parts(model, cut, &maker);
  const StoredWeight table{
      .layout = model.layout(LinearRole::kTable, c.vocab_size, c.hidden_size)};
  RETURN_IF_ERROR(
      maker.Table(table.layout, kernels::ViewOf(table), &out.embedding));
  RETURN_IF_ERROR(parts.Ones(c.hidden_size, &out.final_norm));
  RETURN_IF_ERROR(maker.Head({table.layout}, cut, &out.head));
  for (size_t i = 0; i < c.full_attention.size(); ++i) {
    RETURN_IF_ERROR(parts.Layer(i, &out.layers.emplace_back()));
  }
  return out;
}

}  // namespace

absl::StatusOr<DeviceWeights> MakeUpWeights(const MadeUpModel& model,
                                            const RankConfig& rank,
                                            DeviceQueue* queue) {
  absl::StatusOr<DeviceWeights> out = MakeUp(model, rank, queue);
  RETURN_IF_ERROR(queue->Wait());
  return out;
}

absl::StatusOr<uint64_t> MadeUpBytes(const MadeUpModel& model,
                                     const RankConfig& rank) {
  ASSIGN_OR_RETURN(const DeviceWeights counted, MakeUp(model, rank, nullptr));
  return counted.dense_bytes + counted.expert_bytes;
}

}  // namespace conclave::model
