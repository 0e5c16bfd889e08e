// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/weights.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/linear.h"
#include "common/checkpoint/tensor_check.h"
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

  absl::Status Linear(const std::string& module,
                      int64_t rows,
                      int64_t cols,
                      WeightView* out) {
    ASSIGN_OR_RETURN(const checkpoint::Linear linear,
                     checkpoint::FindLinear(checkpoint_, prefix_ + module));
    const WeightLayout& layout = linear.layout;
    if (layout.rows != rows || layout.cols != cols) {
      return checkpoint::BadTensor(
          linear.weight, absl::StrCat("shape is not [", rows, ", ", cols, "]"));
    }
    StoredWeight weight{.layout = layout};
    if (linear.transposed) {
      RETURN_IF_ERROR(Copied(linear, &weight));
    } else {
      RETURN_IF_ERROR(Mapped(linear, &weight));
    }
    *out = kernels::ViewOf(weight);
    return absl::OkStatus();
  }

  // Codes that lie otherwise in the file.
  absl::Status Copied(const checkpoint::Linear& linear, StoredWeight* out) {
    const WeightLayout& layout = linear.layout;
    Buffer data(layout.data_bytes()), scales(layout.scale_bytes());
    RETURN_IF_ERROR(checkpoint::ReadPart(
        checkpoint_,
        linear,
        {.row_end = layout.rows, .col_end = layout.cols},
        layout,
        {.data = data.bytes(), .scales = scales.bytes(), .biases = {}}));
    out->data = Keep(std::move(data));
    out->scales = Keep(std::move(scales));
    return absl::OkStatus();
  }

  // Weights, scales and biases stay in the file.
  absl::Status Mapped(const checkpoint::Linear& linear, StoredWeight* out) {
    const DType dtype = linear.layout.dtype;
    if (dtype == DType::kF8E4M3) {
      RETURN_IF_ERROR(
          checkpoint::CheckFp8Codes(linear.weight.data, linear.weight));
    } else if (dtype != DType::kU32 && dtype != DType::kF32 &&
               dtype != DType::kBF16) {
      return checkpoint::BadTensor(linear.weight,
                                   "dtype is neither F32 nor BF16");
    }
    out->data = Aligned(linear.weight, dtype == DType::kF32 ? 4 : 2);
    if (linear.scales.has_value()) {
      RETURN_IF_ERROR(
          checkpoint::CheckFinite(linear.scales->data, *linear.scales));
      out->scales = Aligned(*linear.scales, 2);
    }
    if (linear.biases.has_value()) {
      RETURN_IF_ERROR(
          checkpoint::CheckFinite(linear.biases->data, *linear.biases));
      out->biases = Aligned(*linear.biases, 2);
    }
    return absl::OkStatus();
  }

  absl::Status Floats(const std::string& name,
                      int64_t size,
                      std::vector<float>* out) {
    ASSIGN_OR_RETURN(*out, checkpoint_.ReadFloats(prefix_ + name));
    if (out->size() != static_cast<size_t>(size)) {
      ASSIGN_OR_RETURN(const TensorView tensor,
                       checkpoint_.Find(prefix_ + name));
      return checkpoint::BadTensor(
          tensor, absl::StrCat("does not have ", size, " elements"));
    }
    return absl::OkStatus();
  }

  absl::Status Norm(const std::string& name, int64_t size, NormWeight* out) {
    RETURN_IF_ERROR(Floats(name, size, out));
    if (checkpoint_.folded_norms()) return absl::OkStatus();
    for (float& w : *out) w += 1.0f;
    return absl::OkStatus();
  }

 private:
  const void* Keep(Buffer buffer) {
    realigned_->push_back(std::move(buffer));
    return realigned_->back().data();
  }

  // The tensor in the file, or a copy where its address is odd.
  const void* Aligned(const TensorView& tensor, size_t alignment) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.data.data());
    if (address % alignment == 0) return tensor.data.data();
    return Keep(Buffer::Copy(tensor.data));
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
  RETURN_IF_ERROR(reader->Linear(at + "q_proj", 2 * query, hidden, &w.q));
  RETURN_IF_ERROR(reader->Linear(at + "k_proj", kv, hidden, &w.k));
  RETURN_IF_ERROR(reader->Linear(at + "v_proj", kv, hidden, &w.v));
  RETURN_IF_ERROR(reader->Linear(at + "o_proj", hidden, query, &w.o));
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
      reader->Linear(at + "in_proj_qkv", channels, hidden, &w.in_qkv));
  RETURN_IF_ERROR(reader->Linear(at + "in_proj_z", values, hidden, &w.in_z));
  RETURN_IF_ERROR(reader->Linear(at + "in_proj_b", heads, hidden, &w.in_b));
  RETURN_IF_ERROR(reader->Linear(at + "in_proj_a", heads, hidden, &w.in_a));
  RETURN_IF_ERROR(reader->Linear(at + "out_proj", hidden, values, &w.out));
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
  RETURN_IF_ERROR(
      reader->Linear("mlp.gate", config.num_experts, hidden, &layer->router));
  RETURN_IF_ERROR(reader->Linear(shared + "gate_proj", width, hidden, &w.gate));
  RETURN_IF_ERROR(reader->Linear(shared + "up_proj", width, hidden, &w.up));
  RETURN_IF_ERROR(reader->Linear(shared + "down_proj", hidden, width, &w.down));
  return reader->Linear("mlp.shared_expert_gate", 1, hidden, &w.router);
}

}  // namespace

absl::StatusOr<DenseWeights> LoadDenseWeights(
    const checkpoint::Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  const int64_t hidden = config.hidden_size;
  DenseWeights out;
  Reader top(checkpoint, "", &out.realigned);
  RETURN_IF_ERROR(
      top.Linear("embed_tokens", config.vocab_size, hidden, &out.embedding));
  RETURN_IF_ERROR(top.Norm("norm.weight", hidden, &out.final_norm));
  RETURN_IF_ERROR(top.Linear("lm_head", config.vocab_size, hidden, &out.head));
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
