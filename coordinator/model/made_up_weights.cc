// SPDX-License-Identifier: Apache-2.0
// A model of a given shape whose weights are made up: for speed, not sense.
#include "common/status_macros.h"
#include "coordinator/model/device_weights_maker.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;
using kernels::DeviceQueue;
using Maker = DeviceWeightsMaker;

absl::Status MakeUpAttention(Maker* maker,
                             const MadeUpModel& model,
                             size_t i,
                             DeviceLayer* to) {
  const ModelConfig& c = model.config;
  const int64_t hidden = c.hidden_size;
  const int64_t query = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  const auto linear = [&](int64_t rows, int64_t cols) {
    return Source{model.layout(LinearRole::kMixer, rows, cols)};
  };
  RETURN_IF_ERROR(maker->Linears(
      {linear(2 * query, hidden), linear(kv, hidden), linear(kv, hidden)},
      LayerName(i, "q, k, v"),
      &to->in));
  RETURN_IF_ERROR(maker->Linears(
      {linear(hidden, query)}, LayerName(i, "o_proj"), &to->out));
  RETURN_IF_ERROR(maker->Ones(c.head_dim, &to->attention.q_norm));
  return maker->Ones(c.head_dim, &to->attention.k_norm);
}

absl::Status MakeUpGdn(Maker* maker,
                       const MadeUpModel& model,
                       size_t i,
                       DeviceLayer* to) {
  const ModelConfig& c = model.config;
  const int64_t hidden = c.hidden_size;
  const int64_t heads = c.linear_num_value_heads;
  const int64_t values = heads * c.linear_value_head_dim;
  const int64_t channels =
      values + 2 * int64_t{c.linear_num_key_heads} * c.linear_key_head_dim;
  const auto linear = [&](LinearRole role, int64_t rows, int64_t cols) {
    return Source{model.layout(role, rows, cols)};
  };
  RETURN_IF_ERROR(maker->Linears({linear(LinearRole::kMixer, channels, hidden),
                                  linear(LinearRole::kMixer, values, hidden),
                                  linear(LinearRole::kGates, heads, hidden),
                                  linear(LinearRole::kGates, heads, hidden)},
                                 LayerName(i, "in_proj"),
                                 &to->in));
  RETURN_IF_ERROR(maker->Linears({linear(LinearRole::kMixer, hidden, values)},
                                 LayerName(i, "out_proj"),
                                 &to->out));
  RETURN_IF_ERROR(
      maker->Ones(channels * c.linear_conv_kernel_dim, &to->gdn.conv));
  RETURN_IF_ERROR(maker->Ones(heads, &to->gdn.a_log));
  RETURN_IF_ERROR(maker->Ones(heads, &to->gdn.dt_bias));
  return maker->Ones(c.linear_value_head_dim, &to->gdn.norm);
}

absl::Status MakeUpMoe(Maker* maker,
                       const MadeUpModel& model,
                       size_t i,
                       DeviceLayer* to) {
  const ModelConfig& c = model.config;
  const int64_t hidden = c.hidden_size;
  const auto gate = [&](int64_t rows) {
    return Source{model.layout(LinearRole::kGates, rows, hidden)};
  };
  RETURN_IF_ERROR(maker->Linears(
      {gate(c.num_experts), gate(1)}, LayerName(i, "router"), &to->router));
  const auto expert = [&](LinearRole role,
                          int64_t width) -> Maker::ExpertSources {
    return {{model.layout(role, width, hidden)},
            {model.layout(role, width, hidden)},
            {model.layout(role, hidden, width)}};
  };
  return maker->Experts(
      c.num_experts,
      [&](int32_t) {
        return expert(LinearRole::kExpert, c.moe_intermediate_size);
      },
      expert(LinearRole::kShared, c.shared_expert_intermediate_size),
      LayerName(i, "experts"),
      &to->experts);
}

}  // namespace

absl::StatusOr<DeviceWeights> MakeUpWeights(const MadeUpModel& model,
                                            DeviceQueue* queue) {
  const ModelConfig& c = model.config;
  const int64_t hidden = c.hidden_size;
  DeviceWeights out;
  out.config = c;
  Maker maker(queue, &out);
  const StoredWeight table{
      .layout = model.layout(LinearRole::kTable, c.vocab_size, hidden)};
  RETURN_IF_ERROR(
      maker.Table(table.layout, kernels::ViewOf(table), &out.embedding));
  RETURN_IF_ERROR(maker.Ones(hidden, &out.final_norm));
  RETURN_IF_ERROR(maker.Linears({{table.layout}}, "lm_head", &out.head));
  for (size_t i = 0; i < c.full_attention.size(); ++i) {
    DeviceLayer& to = out.layers.emplace_back();
    to.full_attention = c.full_attention[i];
    RETURN_IF_ERROR(maker.Ones(hidden, &to.input_norm));
    RETURN_IF_ERROR(maker.Ones(hidden, &to.post_attention_norm));
    RETURN_IF_ERROR(to.full_attention ? MakeUpAttention(&maker, model, i, &to)
                                      : MakeUpGdn(&maker, model, i, &to));
    RETURN_IF_ERROR(MakeUpMoe(&maker, model, i, &to));
  }
  RETURN_IF_ERROR(queue->Wait());
  return out;
}

}  // namespace conclave::model
