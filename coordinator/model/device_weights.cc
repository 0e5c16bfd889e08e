// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/device_weights.h"

#include <span>
#include <utility>

#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/device_needs.h"
#include "coordinator/model/device_weights_maker.h"
#include "coordinator/model/weights.h"

namespace conclave::model {
namespace {

using Maker = DeviceWeightsMaker;
using checkpoint::ModelConfig;
using kernels::DeviceQueue;
using kernels::WeightView;

Source From(const WeightView& view) { return {LayoutOf(view), &view}; }

absl::Status LoadMixer(Maker* maker,
                       const LayerWeights& from,
                       size_t i,
                       DeviceLayer* to) {
  if (from.full_attention) {
    const kernels::AttentionWeights& w = from.attention;
    RETURN_IF_ERROR(maker->Linears(
        {From(w.q), From(w.k), From(w.v)}, LayerName(i, "q, k, v"), &to->in));
    RETURN_IF_ERROR(
        maker->Linears({From(w.o)}, LayerName(i, "o_proj"), &to->out));
    RETURN_IF_ERROR(maker->Floats(w.q_norm, &to->attention.q_norm));
    return maker->Floats(w.k_norm, &to->attention.k_norm);
  }
  const kernels::GdnWeights& w = from.gdn;
  RETURN_IF_ERROR(
      maker->Linears({From(w.in_qkv), From(w.in_z), From(w.in_b), From(w.in_a)},
                     LayerName(i, "in_proj"),
                     &to->in));
  RETURN_IF_ERROR(
      maker->Linears({From(w.out)}, LayerName(i, "out_proj"), &to->out));
  RETURN_IF_ERROR(maker->Floats(w.conv, &to->gdn.conv));
  RETURN_IF_ERROR(maker->Floats(w.a_log, &to->gdn.a_log));
  RETURN_IF_ERROR(maker->Floats(w.dt_bias, &to->gdn.dt_bias));
  return maker->Floats(w.norm, &to->gdn.norm);
}

// The routed experts of one layer, all of each, in host memory.
absl::StatusOr<checkpoint::ShardWeights> LoadLayerExperts(
    const checkpoint::Checkpoint& checkpoint, int32_t layer) {
  const ModelConfig& config = checkpoint.config();
  Shard shard{.id = ShardId{0}, .slices = {}};
  for (int32_t e = 0; e < config.num_experts; ++e) {
    shard.slices.push_back({.layer = LayerId{layer},
                            .expert = ExpertId{e},
                            .begin = 0,
                            .end = config.moe_intermediate_size});
  }
  ASSIGN_OR_RETURN(
      std::vector<checkpoint::ShardWeights> loaded,
      checkpoint::LoadShards(
          checkpoint, std::span(&shard, 1), limits::kReaders, nullptr));
  return std::move(loaded[0]);
}

absl::Status LoadExperts(Maker* maker,
                         const checkpoint::Checkpoint& checkpoint,
                         const LayerWeights& from,
                         size_t i,
                         DeviceLayer* to) {
  const Maker::ExpertSources shared{
      From(from.shared.gate), From(from.shared.up), From(from.shared.down)};
  if (!to->routed) {
    return maker->SharedExpert(checkpoint.config().num_experts,
                               shared,
                               LayerName(i, "shared_expert"),
                               &to->experts);
  }
  ASSIGN_OR_RETURN(const checkpoint::ShardWeights shard,
                   LoadLayerExperts(checkpoint, static_cast<int32_t>(i)));
  const kernels::ShardLayerWeights all =
      kernels::ViewOf(shard.layers[i].Stacked());
  std::vector<kernels::ExpertViews> views;
  for (int32_t e = 0; e < all.slices; ++e) {
    views.push_back(kernels::ViewsOf(all, e));
  }
  return maker->Experts(
      all.slices,
      [&](int32_t e) -> Maker::ExpertSources {
        return {From(views[e].gate), From(views[e].up), From(views[e].down)};
      },
      shared,
      LayerName(i, "experts"),
      &to->experts);
}

}  // namespace

absl::StatusOr<DeviceWeights> LoadDeviceWeights(
    const checkpoint::Checkpoint& checkpoint,
    DeviceQueue* queue,
    const RoutedHere& here,
    const checkpoint::LoadProgressFn& progress) {
  DeviceWeights out;
  out.config = checkpoint.config();
  ASSIGN_OR_RETURN(const uint64_t total, DeviceWeightBytesOf(checkpoint, here));
  if (progress != nullptr) progress(0, total);
  ASSIGN_OR_RETURN(const DenseWeights dense, LoadDenseWeights(checkpoint));
  Maker maker(queue, &out);
  RETURN_IF_ERROR(
      maker.Table(LayoutOf(dense.embedding), dense.embedding, &out.embedding));
  RETURN_IF_ERROR(maker.Floats(dense.final_norm, &out.final_norm));
  RETURN_IF_ERROR(maker.Linears({From(dense.head)}, "lm_head", &out.head));
  for (size_t i = 0; i < dense.layers.size(); ++i) {
    const LayerWeights& from = dense.layers[i];
    DeviceLayer& to = out.layers.emplace_back();
    to.full_attention = from.full_attention;
    to.routed = IsHere(here, i);
    RETURN_IF_ERROR(maker.Floats(from.input_norm, &to.input_norm));
    RETURN_IF_ERROR(
        maker.Floats(from.post_attention_norm, &to.post_attention_norm));
    RETURN_IF_ERROR(LoadMixer(&maker, from, i, &to));
    RETURN_IF_ERROR(maker.Linears({From(from.router), From(from.shared.router)},
                                  LayerName(i, "router"),
                                  &to.router));
    RETURN_IF_ERROR(LoadExperts(&maker, checkpoint, from, i, &to));
    // What was read of this layer is still on its way to the device.
    RETURN_IF_ERROR(queue->Wait());
    if (progress != nullptr) {
      progress(out.dense_bytes + out.expert_bytes, total);
    }
  }
  return out;
}

}  // namespace conclave::model
