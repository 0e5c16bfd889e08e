// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/device_weights.h"

#include <span>
#include <utility>

#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/device_needs.h"
#include "coordinator/model/device_weights_maker.h"
#include "coordinator/model/rank_sources.h"

namespace conclave::model {
namespace {

using Maker = DeviceWeightsMaker;
using checkpoint::Checkpoint;
using checkpoint::ModelConfig;
using kernels::DeviceQueue;
using kernels::WeightView;

Source From(const WeightView& view) { return {LayoutOf(view), view}; }

// What one rank takes of the layers.
class RankLoader {
 public:
  RankLoader(const Checkpoint& checkpoint, const RankCut& cut, Maker* maker)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        cut_(cut),
        maker_(*maker) {}

  absl::Status Mixer(const LayerWeights& from, size_t i, DeviceLayer* to) {
    if (!cut_.mixers) return absl::OkStatus();
    return from.full_attention ? Attention(from.attention, i, to)
                               : Gdn(from.gdn, i, to);
  }

  absl::Status Experts(const LayerWeights& from, size_t i, DeviceLayer* to) {
    ASSIGN_OR_RETURN(const ExpertSources shared,
                     PartOf({From(from.shared.gate),
                             From(from.shared.up),
                             From(from.shared.down)},
                            cut_.shared_columns,
                            LayerName(i, "shared_expert")));
    if (!to->routed) {
      return maker_.SharedExpert(config_.num_experts,
                                 shared,
                                 LayerName(i, "shared_expert"),
                                 &to->experts);
    }
    ASSIGN_OR_RETURN(const checkpoint::ShardWeights shard, Routed(i));
    const kernels::ShardLayerWeights all =
        kernels::ViewOf(shard.layers[i].Stacked());
    return maker_.Experts(
        all.slices,
        [&](int32_t e) -> ExpertSources {
          const kernels::ExpertViews views = kernels::ViewsOf(all, e);
          return {From(views.gate), From(views.up), From(views.down)};
        },
        shared,
        LayerName(i, "experts"),
        &to->experts);
  }

 private:
  absl::Status Attention(const kernels::AttentionWeights& w,
                         size_t i,
                         DeviceLayer* to) {
    const AttentionSources all{From(w.q), From(w.k), From(w.v), From(w.o)};
    ASSIGN_OR_RETURN(const auto in, PartIn(all, config_, cut_));
    ASSIGN_OR_RETURN(const Source out,
                     PartOut(all, config_, cut_, LayerName(i, "o_proj")));
    RETURN_IF_ERROR(maker_.Linears(in, LayerName(i, "q, k, v"), &to->in));
    RETURN_IF_ERROR(maker_.Linears({out}, LayerName(i, "o_proj"), &to->out));
    RETURN_IF_ERROR(maker_.Floats(w.q_norm, &to->attention.q_norm));
    return maker_.Floats(w.k_norm, &to->attention.k_norm);
  }

  absl::Status Gdn(const kernels::GdnWeights& w, size_t i, DeviceLayer* to) {
    const GdnSources all{
        From(w.in_qkv), From(w.in_z), From(w.in_b), From(w.in_a), From(w.out)};
    ASSIGN_OR_RETURN(const auto in, PartIn(all, config_, cut_));
    ASSIGN_OR_RETURN(const Source out,
                     PartOut(all, config_, cut_, LayerName(i, "out_proj")));
    RETURN_IF_ERROR(maker_.Linears(in, LayerName(i, "in_proj"), &to->in));
    RETURN_IF_ERROR(maker_.Linears({out}, LayerName(i, "out_proj"), &to->out));
    std::vector<float> conv;
    for (const Range& channels : GdnChannels(config_, cut_)) {
      const Range taps = channels.Times(config_.linear_conv_kernel_dim);
      conv.insert(
          conv.end(), w.conv.begin() + taps.begin, w.conv.begin() + taps.end);
    }
    const auto heads = [&](std::span<const float> of) {
      return of.subspan(cut_.value_heads.begin, cut_.value_heads.size());
    };
    RETURN_IF_ERROR(maker_.Floats(conv, &to->gdn.conv));
    RETURN_IF_ERROR(maker_.Floats(heads(w.a_log), &to->gdn.a_log));
    RETURN_IF_ERROR(maker_.Floats(heads(w.dt_bias), &to->gdn.dt_bias));
    return maker_.Floats(w.norm, &to->gdn.norm);
  }

  // The routed experts of one layer, this rank's columns of each, in host
  // memory.
  absl::StatusOr<checkpoint::ShardWeights> Routed(size_t layer) {
    Shard shard{.id = ShardId{0}, .slices = {}};
    for (int32_t e = 0; e < config_.num_experts; ++e) {
      shard.slices.push_back({.layer = LayerId{static_cast<int32_t>(layer)},
                              .expert = ExpertId{e},
                              .begin = static_cast<int32_t>(cut_.columns.begin),
                              .end = static_cast<int32_t>(cut_.columns.end)});
    }
    ASSIGN_OR_RETURN(
        std::vector<checkpoint::ShardWeights> loaded,
        checkpoint::LoadShards(
            checkpoint_, std::span(&shard, 1), limits::kReaders, nullptr));
    return std::move(loaded[0]);
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const RankCut& cut_;
  Maker& maker_;
};

}  // namespace

absl::StatusOr<DeviceWeights> LoadDeviceWeights(const Checkpoint& checkpoint,
                                                DeviceQueue* queue,
                                                const DeviceLoad& load) {
  if (load.dense == nullptr) {
    ASSIGN_OR_RETURN(const DenseWeights own, LoadDenseWeights(checkpoint));
    DeviceLoad with = load;
    with.dense = &own;
    return LoadDeviceWeights(checkpoint, queue, with);
  }
  const DenseWeights& dense = *load.dense;
  ASSIGN_OR_RETURN(const ColumnMultiples multiples, MultiplesOf(checkpoint));
  ASSIGN_OR_RETURN(const RankCut cut,
                   CutFor(checkpoint.config(), load.rank, multiples));
  DeviceWeights out;
  out.config = ConfigOf(checkpoint.config(), cut);
  out.cut = cut;
  ASSIGN_OR_RETURN(const uint64_t total,
                   DeviceWeightBytesOf(checkpoint, load.here, load.rank));
  if (load.progress != nullptr) load.progress(0, total);
  Maker maker(queue, &out);
  RankLoader loader(checkpoint, cut, &maker);
  RETURN_IF_ERROR(
      maker.Table(LayoutOf(dense.embedding), dense.embedding, &out.embedding));
  RETURN_IF_ERROR(maker.Floats(dense.final_norm, &out.final_norm));
  RETURN_IF_ERROR(maker.Head(From(dense.head), cut, &out.head));
  for (size_t i = 0; i < dense.layers.size(); ++i) {
    const LayerWeights& from = dense.layers[i];
    DeviceLayer& to = out.layers.emplace_back();
    to.full_attention = from.full_attention;
    to.routed = IsHere(load.here, i);
    RETURN_IF_ERROR(maker.Floats(from.input_norm, &to.input_norm));
    RETURN_IF_ERROR(
        maker.Floats(from.post_attention_norm, &to.post_attention_norm));
    RETURN_IF_ERROR(loader.Mixer(from, i, &to));
    RETURN_IF_ERROR(maker.Linears({From(from.router), From(from.shared.router)},
                                  LayerName(i, "router"),
                                  &to.router));
    RETURN_IF_ERROR(loader.Experts(from, i, &to));
    // What was read of this layer is still on its way to the device.
    RETURN_IF_ERROR(queue->Wait());
    if (load.progress != nullptr) {
      load.progress(out.dense_bytes + out.expert_bytes, total);
    }
  }
  return out;
}

}  // namespace conclave::model
