// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/shapes.h"

#include "common/limits.h"

namespace conclave::model {

using checkpoint::ModelConfig;

kernels::AttentionShape AttentionShapeOf(const ModelConfig& config) {
  return {.hidden = config.hidden_size,
          .heads = config.num_attention_heads,
          .kv_heads = config.num_key_value_heads,
          .head_dim = config.head_dim,
          .rotary_dim = config.rotary_dim,
          .rope_theta = config.rope_theta,
          .eps = config.rms_norm_eps,
          .block_tokens = limits::kKvBlockTokens};
}

kernels::GdnShape GdnShapeOf(const ModelConfig& config) {
  return {.hidden = config.hidden_size,
          .key_heads = config.linear_num_key_heads,
          .value_heads = config.linear_num_value_heads,
          .key_dim = config.linear_key_head_dim,
          .value_dim = config.linear_value_head_dim,
          .conv_kernel = config.linear_conv_kernel_dim,
          .eps = config.rms_norm_eps};
}

}  // namespace conclave::model
