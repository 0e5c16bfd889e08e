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
    RETURN_IF_ERROR(Linear("embed_tokens", c_.vocab_size, H()));
    RETURN_IF_ERROR(Visit("norm.weight", {H()}));
    return Linear("lm_head", c_.vocab_size, H());
  }

  absl::Status Mtp() {
    RETURN_IF_ERROR(Linear("mtp.fc", H(), 2 * H()));
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

  // A linear that a checkpoint may have quantised: `module`.weight, or what
  // stands in its place. `stack`: the dimension that leads, of experts.
  absl::Status Linear(const std::string& module,
                      int64_t rows,
                      int64_t cols,
                      const Shape& stack = {}) {
    switch (c_.quantisation.format) {
      case QuantFormat::kFp8:
        if (stack.empty()) return Fp8(module + ".weight", rows, cols);
        break;
      case QuantFormat::kGptq:
        if (has_(module + std::string(kGptqCodes))) {
          return Gptq(module, rows, cols);
        }
        break;
      case QuantFormat::kMlx:
        if (has_(module + std::string(kAffineScales))) {
          return Affine(module, rows, cols, stack);
        }
        break;
      case QuantFormat::kNone:
        break;
    }
    return Visit(module + ".weight", Joined(stack, {rows, cols}));
  }

  absl::Status Fp8(const std::string& name, int64_t rows, int64_t cols) {
    const std::string scales = absl::StrCat(name, std::string(kScaleSuffix));
    if (!has_(scales)) return Visit(name, {rows, cols});
    RETURN_IF_ERROR(visit_({name, {rows, cols}, TensorKind::kFp8}));
    return visit_(
        {scales, {Fp8Blocks(rows), Fp8Blocks(cols)}, TensorKind::kFp8Scales});
  }

  absl::Status Gptq(const std::string& module, int64_t rows, int64_t cols) {
    const AffineFormat format = c_.quantisation.affine;
    const int64_t per_word = 32 / format.bits;
    RETURN_IF_ERROR(CheckGroup(module, cols, format));
    if (rows % per_word != 0) return Odd(module, "rows", rows, per_word);
    const int64_t groups = cols / format.group;
    RETURN_IF_ERROR(visit_({module + std::string(kGptqCodes),
                            {cols / per_word, rows},
                            TensorKind::kGptq}));
    RETURN_IF_ERROR(visit_(
        {module + ".qzeros", {groups, rows / per_word}, TensorKind::kIndex}));
    RETURN_IF_ERROR(visit_({module + std::string(kAffineScales),
                            {groups, rows},
                            TensorKind::kHalf}));
    return visit_({module + ".g_idx", {cols}, TensorKind::kIndex});
  }

  absl::Status Affine(const std::string& module,
                      int64_t rows,
                      int64_t cols,
                      const Shape& stack) {
    const AffineFormat format = c_.quantisation.Of(module);
    if (format.bits == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json says that ",
                       module,
                       " is not quantised, but it has scales"));
    }
    RETURN_IF_ERROR(CheckGroup(module, cols, format));
    RETURN_IF_ERROR(visit_({module + ".weight",
                            Joined(stack, {rows, cols * format.bits / 32}),
                            TensorKind::kAffine}));
    const Shape scales = Joined(stack, {rows, cols / format.group});
    RETURN_IF_ERROR(visit_(
        {module + std::string(kAffineScales), scales, TensorKind::kHalf}));
    return visit_(
        {module + std::string(kAffineBiases), scales, TensorKind::kHalf});
  }

  static absl::Status CheckGroup(const std::string& module,
                                 int64_t cols,
                                 const AffineFormat& format) {
    if (cols % format.group == 0) return absl::OkStatus();
    return Odd(module, "columns", cols, format.group);
  }

  static absl::Status Odd(const std::string& module,
                          const char* what,
                          int64_t count,
                          int64_t multiple) {
    return absl::InvalidArgumentError(absl::StrCat(module,
                                                   " is quantised, but its ",
                                                   count,
                                                   " ",
                                                   what,
                                                   " are no multiple of ",
                                                   multiple));
  }

  static Shape Joined(const Shape& stack, const Shape& rest) {
    Shape out = stack;
    out.insert(out.end(), rest.begin(), rest.end());
    return out;
  }

  absl::Status FullAttention(const std::string& at) {
    const int64_t q = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t kv = int64_t{c_.num_key_value_heads} * c_.head_dim;
    // Query and output gate share one projection.
    RETURN_IF_ERROR(Linear(at + "q_proj", 2 * q, H()));
    RETURN_IF_ERROR(Linear(at + "k_proj", kv, H()));
    RETURN_IF_ERROR(Linear(at + "v_proj", kv, H()));
    RETURN_IF_ERROR(Linear(at + "o_proj", H(), q));
    RETURN_IF_ERROR(Visit(at + "q_norm.weight", {c_.head_dim}));
    return Visit(at + "k_norm.weight", {c_.head_dim});
  }

  absl::Status LinearAttention(const std::string& at) {
    const int64_t heads = c_.linear_num_value_heads;
    const int64_t keys =
        int64_t{c_.linear_num_key_heads} * c_.linear_key_head_dim;
    const int64_t values = heads * c_.linear_value_head_dim;
    const int64_t channels = 2 * keys + values;
    RETURN_IF_ERROR(Linear(at + "in_proj_qkv", channels, H()));
    RETURN_IF_ERROR(Linear(at + "in_proj_z", values, H()));
    RETURN_IF_ERROR(Linear(at + "in_proj_b", heads, H()));
    RETURN_IF_ERROR(Linear(at + "in_proj_a", heads, H()));
    const int64_t taps = c_.linear_conv_kernel_dim;
    RETURN_IF_ERROR(Visit(
        at + "conv1d.weight",
        IsMlx(has_) ? Shape{channels, taps, 1} : Shape{channels, 1, taps}));
    RETURN_IF_ERROR(Visit(at + "A_log", {heads}));
    RETURN_IF_ERROR(Visit(at + "dt_bias", {heads}));
    RETURN_IF_ERROR(Visit(at + "norm.weight", {c_.linear_value_head_dim}));
    return Linear(at + "out_proj", H(), values);
  }

  absl::Status Moe(const std::string& at) {
    const int64_t shared = c_.shared_expert_intermediate_size;
    RETURN_IF_ERROR(Linear(at + "gate", c_.num_experts, H()));
    RETURN_IF_ERROR(Gated(at + "shared_expert.", shared));
    RETURN_IF_ERROR(Linear(at + "shared_expert_gate", 1, H()));
    const int64_t experts = c_.num_experts;
    const int64_t width = c_.moe_intermediate_size;
    if (has_(at + "switch_mlp.gate_proj.weight")) {
      return Gated(at + "switch_mlp.", width, {experts});
    }
    const std::string fused = at + "experts.gate_up_proj";
    const std::string first = at + "experts.0.gate_proj";
    if (!has_(fused) &&
        (has_(first + ".weight") || has_(first + std::string(kGptqCodes)))) {
      for (int64_t e = 0; e < experts; ++e) {
        RETURN_IF_ERROR(Gated(absl::StrCat(at, "experts.", e, "."), width));
      }
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Visit(fused, {experts, 2 * width, H()}));
    return Visit(at + "experts.down_proj", {experts, H(), width});
  }

  absl::Status Gated(const std::string& at,
                     int64_t width,
                     const Shape& stack = {}) {
    RETURN_IF_ERROR(Linear(at + "gate_proj", width, H(), stack));
    RETURN_IF_ERROR(Linear(at + "up_proj", width, H(), stack));
    return Linear(at + "down_proj", H(), width, stack);
  }

  const ModelConfig& c_;
  const HasTensorFn& has_;
  const ExpectedTensorFn& visit_;
};

}  // namespace

bool IsMlx(const HasTensorFn& has) {
  return has("layers.0.mlp.switch_mlp.gate_proj.weight");
}

bool IsPublishedAsFp8(std::string_view name) {
  for (const char* kept : {"embed_tokens",
                           "lm_head",
                           "in_proj_a",
                           "in_proj_b",
                           "mlp.gate.",
                           "shared_expert_gate",
                           "mtp.fc"}) {
    if (name.find(kept) != name.npos) return false;
  }
  return true;
}

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
