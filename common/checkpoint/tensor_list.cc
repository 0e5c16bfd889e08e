// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/tensor_list.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/dtype.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

using Shape = std::vector<int64_t>;

class Lister {
 public:
  Lister(const ModelConfig& config,
         const HasTensorFn& has,
         const ExpectedTensorFn& visit)
      : c_(config), has_(has), visit_(visit) {}

  absl::Status Globals() {
    RETURN_IF_ERROR(Visit("embed_tokens.weight", {c_.vocab_size, H()}));
    RETURN_IF_ERROR(Visit("norm.weight", {H()}));
    return Visit("lm_head.weight", {c_.vocab_size, H()});
  }

  absl::Status Mtp() {
    RETURN_IF_ERROR(Visit("mtp.fc.weight", {H(), 2 * H()}));
    for (const char* norm :
         {"pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"}) {
      RETURN_IF_ERROR(Visit(absl::StrCat("mtp.", norm, ".weight"), {H()}));
    }
    for (int32_t i = 0; i < c_.mtp_num_hidden_layers; ++i) {
      RETURN_IF_ERROR(
          Layer(absl::StrCat("mtp.layers.", i, "."), /*full_attention=*/true));
    }
    return absl::OkStatus();
  }

  absl::Status Layer(const std::string& at, bool full_attention) {
    RETURN_IF_ERROR(Visit(at + "input_layernorm.weight", {H()}));
    RETURN_IF_ERROR(Visit(at + "post_attention_layernorm.weight", {H()}));
    if (full_attention) {
      RETURN_IF_ERROR(FullAttention(at + "self_attn."));
    } else {
      RETURN_IF_ERROR(LinearAttention(at + "linear_attn."));
    }
    return Moe(at + "mlp.");
  }

 private:
  int64_t H() const { return c_.hidden_size; }

  absl::Status Visit(std::string name, Shape shape) {
    return visit_({std::move(name), std::move(shape), TensorKind::kFloat});
  }

  // A linear that an FP8 checkpoint may have converted.
  absl::Status Linear(std::string name, int64_t rows, int64_t cols) {
    const std::string scales = absl::StrCat(name, std::string(kScaleSuffix));
    if (!c_.fp8 || !has_(scales)) {
      return Visit(std::move(name), {rows, cols});
    }
    RETURN_IF_ERROR(visit_({std::move(name), {rows, cols}, TensorKind::kFp8}));
    return visit_(
        {scales, {Fp8Blocks(rows), Fp8Blocks(cols)}, TensorKind::kScales});
  }

  absl::Status FullAttention(const std::string& at) {
    const int64_t q = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t kv = int64_t{c_.num_key_value_heads} * c_.head_dim;
    // Query and output gate share one projection.
    RETURN_IF_ERROR(Linear(at + "q_proj.weight", 2 * q, H()));
    RETURN_IF_ERROR(Linear(at + "k_proj.weight", kv, H()));
    RETURN_IF_ERROR(Linear(at + "v_proj.weight", kv, H()));
    RETURN_IF_ERROR(Linear(at + "o_proj.weight", H(), q));
    RETURN_IF_ERROR(Visit(at + "q_norm.weight", {c_.head_dim}));
    return Visit(at + "k_norm.weight", {c_.head_dim});
  }

  absl::Status LinearAttention(const std::string& at) {
    const int64_t heads = c_.linear_num_value_heads;
    const int64_t keys =
        int64_t{c_.linear_num_key_heads} * c_.linear_key_head_dim;
    const int64_t values = heads * c_.linear_value_head_dim;
    const int64_t channels = 2 * keys + values;
    RETURN_IF_ERROR(Linear(at + "in_proj_qkv.weight", channels, H()));
    RETURN_IF_ERROR(Linear(at + "in_proj_z.weight", values, H()));
    RETURN_IF_ERROR(Visit(at + "in_proj_b.weight", {heads, H()}));
    RETURN_IF_ERROR(Visit(at + "in_proj_a.weight", {heads, H()}));
    RETURN_IF_ERROR(
        Visit(at + "conv1d.weight", {channels, 1, c_.linear_conv_kernel_dim}));
    RETURN_IF_ERROR(Visit(at + "A_log", {heads}));
    RETURN_IF_ERROR(Visit(at + "dt_bias", {heads}));
    RETURN_IF_ERROR(Visit(at + "norm.weight", {c_.linear_value_head_dim}));
    return Linear(at + "out_proj.weight", H(), values);
  }

  absl::Status Moe(const std::string& at) {
    const int64_t shared = c_.shared_expert_intermediate_size;
    RETURN_IF_ERROR(Visit(at + "gate.weight", {c_.num_experts, H()}));
    RETURN_IF_ERROR(Gated(at + "shared_expert.", shared));
    RETURN_IF_ERROR(Visit(at + "shared_expert_gate.weight", {1, H()}));
    const int64_t experts = c_.num_experts;
    const int64_t width = c_.moe_intermediate_size;
    const std::string fused = at + "experts.gate_up_proj";
    if (!has_(fused) && has_(at + "experts.0.gate_proj.weight")) {
      for (int64_t e = 0; e < experts; ++e) {
        RETURN_IF_ERROR(Gated(absl::StrCat(at, "experts.", e, "."), width));
      }
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Visit(fused, {experts, 2 * width, H()}));
    return Visit(at + "experts.down_proj", {experts, H(), width});
  }

  absl::Status Gated(const std::string& at, int64_t width) {
    RETURN_IF_ERROR(Linear(at + "gate_proj.weight", width, H()));
    RETURN_IF_ERROR(Linear(at + "up_proj.weight", width, H()));
    return Linear(at + "down_proj.weight", H(), width);
  }

  const ModelConfig& c_;
  const HasTensorFn& has_;
  const ExpectedTensorFn& visit_;
};

}  // namespace

absl::Status ForEachExpectedTensor(const ModelConfig& config,
                                   bool with_mtp,
                                   const HasTensorFn& has,
                                   const ExpectedTensorFn& visit) {
  Lister lister(config, has, visit);
  RETURN_IF_ERROR(lister.Globals());
  for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
    RETURN_IF_ERROR(lister.Layer(absl::StrCat("layers.", i, "."),
                                 config.full_attention[i]));
  }
  return with_mtp ? lister.Mtp() : absl::OkStatus();
}

}  // namespace conclave::checkpoint
