// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/weights.h"

#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/fp8.h"
#include "common/status_macros.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;
using checkpoint::TensorView;
using kernels::WeightView;

// Reads tensors whose names begin with `prefix`.
class Reader {
 public:
  Reader(const checkpoint::Checkpoint& checkpoint,
         std::string prefix,
         std::vector<Buffer>* realigned)
      : checkpoint_(checkpoint),
        prefix_(std::move(prefix)),
        realigned_(realigned) {}

  absl::Status Linear(const std::string& name,
                      int64_t rows,
                      int64_t cols,
                      WeightView* out) {
    ASSIGN_OR_RETURN(const TensorView tensor, checkpoint_.Find(prefix_ + name));
    if (tensor.shape != std::vector<int64_t>{rows, cols}) {
      return Bad(tensor, absl::StrCat("shape is not [", rows, ", ", cols, "]"));
    }
    if (tensor.dtype == DType::kF8E4M3) return Fp8(name, tensor, out);
    if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kBF16) {
      return Bad(tensor, "dtype is neither F32 nor BF16");
    }
    *out = {.data = tensor.data.data(),
            .dtype = tensor.dtype,
            .rows = rows,
            .cols = cols,
            .row_stride = cols};
    if (reinterpret_cast<uintptr_t>(out->data) % SizeOf(tensor.dtype) != 0) {
      realigned_->push_back(Buffer::Copy(tensor.data));
      out->data = realigned_->back().data();
    }
    return absl::OkStatus();
  }

  // The codes stay in the file; the scales are few and are copied.
  absl::Status Fp8(const std::string& name,
                   const TensorView& tensor,
                   WeightView* out) {
    RETURN_IF_ERROR(checkpoint::CheckFp8Codes(tensor.data, tensor));
    ASSIGN_OR_RETURN(const std::vector<uint16_t> scales,
                     checkpoint::ReadFp8Scales(checkpoint_, prefix_ + name));
    const int64_t cols = tensor.shape[1];
    realigned_->push_back(Buffer::Copy(std::as_bytes(std::span(scales))));
    *out = {.data = tensor.data.data(),
            .dtype = DType::kU8,
            .rows = tensor.shape[0],
            .cols = cols,
            .row_stride = cols,
            .packing = kernels::Packing::kFp8Block,
            .group = kFp8Block,
            .scales = realigned_->back().data(),
            .scale_stride = Fp8Blocks(cols)};
    return absl::OkStatus();
  }

  absl::Status Floats(const std::string& name,
                      int64_t size,
                      std::vector<float>* out) {
    ASSIGN_OR_RETURN(*out, checkpoint_.ReadFloats(prefix_ + name));
    if (out->size() != static_cast<size_t>(size)) {
      ASSIGN_OR_RETURN(const TensorView tensor,
                       checkpoint_.Find(prefix_ + name));
      return Bad(tensor, absl::StrCat("does not have ", size, " elements"));
    }
    return absl::OkStatus();
  }

  absl::Status Norm(const std::string& name, int64_t size, NormWeight* out) {
    RETURN_IF_ERROR(Floats(name, size, out));
    for (float& w : *out) w += 1.0f;
    return absl::OkStatus();
  }

 private:
  static absl::Status Bad(const TensorView& tensor, const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat(tensor.file, ": tensor ", tensor.name, ": ", why));
  }

  const checkpoint::Checkpoint& checkpoint_;
  std::string prefix_;
  std::vector<Buffer>* realigned_;
};

absl::Status LoadAttention(const ModelConfig& config,
                           Reader* reader,
                           LayerWeights* layer) {
  const int64_t hidden = config.hidden_size;
  const int64_t dim = config.head_dim;
  const int64_t query = config.num_attention_heads * dim;
  const int64_t kv = config.num_key_value_heads * dim;
  kernels::AttentionWeights& w = layer->attention;
  const std::string at = "self_attn.";
  RETURN_IF_ERROR(
      reader->Linear(at + "q_proj.weight", 2 * query, hidden, &w.q));
  RETURN_IF_ERROR(reader->Linear(at + "k_proj.weight", kv, hidden, &w.k));
  RETURN_IF_ERROR(reader->Linear(at + "v_proj.weight", kv, hidden, &w.v));
  RETURN_IF_ERROR(reader->Linear(at + "o_proj.weight", hidden, query, &w.o));
  RETURN_IF_ERROR(reader->Norm(at + "q_norm.weight", dim, &layer->q_norm));
  RETURN_IF_ERROR(reader->Norm(at + "k_norm.weight", dim, &layer->k_norm));
  w.q_norm = layer->q_norm;
  w.k_norm = layer->k_norm;
  return absl::OkStatus();
}

absl::Status LoadGdn(const ModelConfig& config,
                     Reader* reader,
                     LayerWeights* layer) {
  const int64_t hidden = config.hidden_size;
  const int64_t heads = config.linear_num_value_heads;
  const int64_t keys =
      int64_t{config.linear_num_key_heads} * config.linear_key_head_dim;
  const int64_t values = heads * config.linear_value_head_dim;
  const int64_t channels = 2 * keys + values;
  kernels::GdnWeights& w = layer->gdn;
  const std::string at = "linear_attn.";
  RETURN_IF_ERROR(
      reader->Linear(at + "in_proj_qkv.weight", channels, hidden, &w.in_qkv));
  RETURN_IF_ERROR(
      reader->Linear(at + "in_proj_z.weight", values, hidden, &w.in_z));
  RETURN_IF_ERROR(
      reader->Linear(at + "in_proj_b.weight", heads, hidden, &w.in_b));
  RETURN_IF_ERROR(
      reader->Linear(at + "in_proj_a.weight", heads, hidden, &w.in_a));
  RETURN_IF_ERROR(
      reader->Linear(at + "out_proj.weight", hidden, values, &w.out));
  RETURN_IF_ERROR(reader->Floats(at + "conv1d.weight",
                                 channels * config.linear_conv_kernel_dim,
                                 &layer->conv));
  RETURN_IF_ERROR(reader->Floats(at + "A_log", heads, &layer->a_log));
  RETURN_IF_ERROR(reader->Floats(at + "dt_bias", heads, &layer->dt_bias));
  // The one norm that is not zero-centred.
  RETURN_IF_ERROR(reader->Floats(
      at + "norm.weight", config.linear_value_head_dim, &layer->gdn_norm));
  w.conv = layer->conv;
  w.a_log = layer->a_log;
  w.dt_bias = layer->dt_bias;
  w.norm = layer->gdn_norm;
  return absl::OkStatus();
}

absl::Status LoadMoe(const ModelConfig& config,
                     Reader* reader,
                     LayerWeights* layer) {
  const int64_t hidden = config.hidden_size;
  const int64_t width = config.shared_expert_intermediate_size;
  kernels::SharedExpertWeights& w = layer->shared;
  const std::string shared = "mlp.shared_expert.";
  RETURN_IF_ERROR(reader->Linear(
      "mlp.gate.weight", config.num_experts, hidden, &layer->router));
  RETURN_IF_ERROR(
      reader->Linear(shared + "gate_proj.weight", width, hidden, &w.gate));
  RETURN_IF_ERROR(
      reader->Linear(shared + "up_proj.weight", width, hidden, &w.up));
  RETURN_IF_ERROR(
      reader->Linear(shared + "down_proj.weight", hidden, width, &w.down));
  return reader->Linear("mlp.shared_expert_gate.weight", 1, hidden, &w.router);
}

}  // namespace

absl::StatusOr<DenseWeights> LoadDenseWeights(
    const checkpoint::Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  const int64_t hidden = config.hidden_size;
  DenseWeights out;
  Reader top(checkpoint, "", &out.realigned);
  RETURN_IF_ERROR(top.Linear(
      "embed_tokens.weight", config.vocab_size, hidden, &out.embedding));
  RETURN_IF_ERROR(top.Norm("norm.weight", hidden, &out.final_norm));
  RETURN_IF_ERROR(
      top.Linear("lm_head.weight", config.vocab_size, hidden, &out.head));
  out.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  for (size_t i = 0; i < out.layers.size(); ++i) {
    LayerWeights& layer = out.layers[i];
    Reader reader(checkpoint, absl::StrCat("layers.", i, "."), &out.realigned);
    layer.full_attention = config.full_attention[i];
    RETURN_IF_ERROR(
        reader.Norm("input_layernorm.weight", hidden, &layer.input_norm));
    RETURN_IF_ERROR(reader.Norm(
        "post_attention_layernorm.weight", hidden, &layer.post_attention_norm));
    RETURN_IF_ERROR(layer.full_attention
                        ? LoadAttention(config, &reader, &layer)
                        : LoadGdn(config, &reader, &layer));
    RETURN_IF_ERROR(LoadMoe(config, &reader, &layer));
  }
  return out;
}

}  // namespace conclave::model
