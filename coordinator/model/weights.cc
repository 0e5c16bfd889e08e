// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/weights.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/linear.h"
#include "common/checkpoint/tensor_check.h"
#include "common/limits.h"
#include "common/parallel_tasks.h"
#include "common/status_macros.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;
using checkpoint::TensorView;
using kernels::WeightView;

// Read at once; several are under way at a time.
constexpr uint64_t kReadBytes = uint64_t{8} << 20;

// A matrix, or some of its rows, that still has to be read.
struct Read {
  checkpoint::Linear linear;
  checkpoint::Cut cut;
  checkpoint::WeightSpans out;

  absl::Status Run(const checkpoint::Checkpoint& checkpoint) const {
    WeightLayout layout = linear.layout;
    layout.rows = cut.rows();
    return checkpoint::ReadPart(checkpoint, linear, cut, layout, out);
  }
};

// Finds tensors whose names begin with `prefix`; reads the small ones, gives
// matrices memory and notes what is to be read into it.
class Reader {
 public:
  Reader(const checkpoint::Checkpoint& checkpoint,
         std::string prefix,
         std::vector<Buffer>* storage,
         std::vector<Read>* reads)
      : checkpoint_(checkpoint),
        prefix_(std::move(prefix)),
        storage_(storage),
        reads_(reads) {}

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
    const DType dtype = layout.dtype;
    if (dtype != DType::kF8E4M3 && dtype != DType::kU32 &&
        dtype != DType::kF32 && dtype != DType::kBF16) {
      return checkpoint::BadTensor(linear.weight,
                                   "dtype is neither F32 nor BF16");
    }
    Buffer data(layout.data_bytes()), scales(layout.scale_bytes()),
        biases(layout.bias_bytes());
    AddReads(linear, {data.bytes(), scales.bytes(), biases.bytes()});
    *out = kernels::ViewOf({.layout = layout,
                            .data = data.data(),
                            .scales = scales.data(),
                            .biases = biases.data()});
    for (Buffer* buffer : {&data, &scales, &biases}) {
      if (!buffer->empty()) storage_->push_back(std::move(*buffer));
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
  // Large matrices in parts, where each row has scales of its own.
  void AddReads(const checkpoint::Linear& linear,
                const checkpoint::WeightSpans& out) {
    const WeightLayout& whole = linear.layout;
    const bool cut = !linear.transposed && whole.dtype != DType::kF8E4M3;
    const int64_t step =
        cut ? std::max<int64_t>(
                  1, static_cast<int64_t>(kReadBytes / whole.row_bytes()))
            : whole.rows;
    const auto part = [&](std::span<std::byte> all, int64_t row, int64_t n) {
      const size_t each = all.size() / static_cast<size_t>(whole.rows);
      return cut ? all.subspan(row * each, n * each) : all;
    };
    for (int64_t row = 0; row < whole.rows; row += step) {
      const int64_t n = std::min(step, whole.rows - row);
      Read& read = reads_->emplace_back();
      read.linear = linear;
      read.cut = {row, row + n, 0, whole.cols};
      read.out = {part(out.data, row, n),
                  part(out.scales, row, n),
                  part(out.biases, row, n)};
    }
  }

  const checkpoint::Checkpoint& checkpoint_;
  std::string prefix_;
  std::vector<Buffer>* storage_;
  std::vector<Read>* reads_;
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

uint64_t DenseWeights::bytes() const {
  uint64_t floats = final_norm.size();
  for (const LayerWeights& layer : layers) {
    for (const std::vector<float>* vector : {&layer.input_norm,
                                             &layer.post_attention_norm,
                                             &layer.q_norm,
                                             &layer.k_norm,
                                             &layer.conv,
                                             &layer.a_log,
                                             &layer.dt_bias,
                                             &layer.gdn_norm}) {
      floats += vector->size();
    }
  }
  uint64_t out = floats * sizeof(float);
  for (const Buffer& buffer : storage) out += buffer.size();
  return out;
}

absl::StatusOr<DenseWeights> LoadDenseWeights(
    const checkpoint::Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  const int64_t hidden = config.hidden_size;
  DenseWeights out;
  std::vector<Read> reads;
  Reader top(checkpoint, "", &out.storage, &reads);
  RETURN_IF_ERROR(
      top.Linear("embed_tokens", config.vocab_size, hidden, &out.embedding));
  RETURN_IF_ERROR(top.Norm("norm.weight", hidden, &out.final_norm));
  RETURN_IF_ERROR(top.Linear("lm_head", config.vocab_size, hidden, &out.head));
  out.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  for (size_t i = 0; i < out.layers.size(); ++i) {
    LayerWeights& layer = out.layers[i];
    Reader reader(
        checkpoint, absl::StrCat("layers.", i, "."), &out.storage, &reads);
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
  RETURN_IF_ERROR(ParallelTasks(
      static_cast<int64_t>(reads.size()), limits::kReaders, [&](int64_t i) {
        return reads[static_cast<size_t>(i)].Run(checkpoint);
      }));
  return out;
}

}  // namespace conclave::model
