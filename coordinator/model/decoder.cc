// SPDX-License-Identifier: Apache-2.0

// The forward pass of Qwen3.5 MoE, as the model's description has it:
//
//   x = embed[tokens]
//   for each layer:
//     x = x + mixer(norm(x))       mixer: Gated DeltaNet, or gated attention
//     x = x + moe(norm(x))         moe: routed experts + shared expert
//   logits = head norm(x)
//
// A step may be two micro-batches, whole sequences each (micro_batches.h).
// Memory lies elsewhere: weights.h, state_pool.h, activations.h.

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "coordinator/model/activations.h"
#include "coordinator/model/host_decoder.h"
#include "coordinator/model/micro_batches.h"
#include "coordinator/model/shapes.h"
#include "coordinator/model/state_pool.h"
#include "coordinator/model/step_check.h"
#include "coordinator/model/weights.h"
#include "kernels/attention.h"
#include "kernels/gdn.h"
#include "kernels/linear.h"
#include "kernels/moe.h"

namespace conclave::model {
using checkpoint::ModelConfig;
using kernels::AddTo;
using kernels::Embed;
using kernels::GatedAttention;
using kernels::GdnMixer;
using kernels::MatMul;
using kernels::RmsNorm;
using kernels::Route;
using kernels::SharedExpert;
using kernels::StepBatch;

namespace {

// A micro-batch on its way through the layers.
struct Slice {
  int32_t number = 0;
  StepBatch batch;
  RowArrays a;
  experts::Ticket ticket;  // of the layer that was begun last
};

}  // namespace

struct HostDecoder::Impl {
  absl::Status Layers(std::span<Slice> slices, Probe* probe);
  absl::Status BeginLayer(int32_t index, Slice* slice, Probe* probe);
  absl::Status EndLayer(int32_t index, const Slice& slice, Probe* probe);
  absl::Status Mix(int32_t index, const Slice& slice);
  absl::Status Head(std::span<const int32_t> logit_rows);

  ModelConfig config;
  kernels::AttentionShape attention;
  kernels::GdnShape gdn;
  DenseWeights weights;
  experts::Experts* experts = nullptr;  // routed ones, wherever they are
  StateSizes sizes;
  StatePool states;
  Activations a;
  kernels::Workspace workspace;
  kernels::Context context;
  std::optional<MicroBatchSteps> micro_batches;
};

// Up to where the routed experts have what they need, and the shared one.
absl::Status HostDecoder::Impl::BeginLayer(int32_t index,
                                           Slice* slice,
                                           Probe* probe) {
  const LayerWeights& layer = weights.layers[static_cast<size_t>(index)];
  const float eps = config.rms_norm_eps;
  const int32_t rows = slice->batch.rows;
  const int32_t top_k = config.num_experts_per_tok;
  const RowArrays& a = slice->a;

  RETURN_IF_ERROR(RmsNorm(context, a.x, rows, layer.input_norm, eps, a.u));
  RETURN_IF_ERROR(Mix(index, *slice));
  RETURN_IF_ERROR(AddTo(context, a.y, a.x));

  RETURN_IF_ERROR(
      RmsNorm(context, a.x, rows, layer.post_attention_norm, eps, a.u));
  RETURN_IF_ERROR(Route(
      context, layer.router, a.u, rows, top_k, a.expert, a.expert_weight));
  const experts::Routing routing{
      rows, top_k, a.expert, a.expert_weight, slice->number};
  if (probe != nullptr) probe->Routed(index, routing);
  ASSIGN_OR_RETURN(slice->ticket, experts->Start(LayerId{index}, a.u, routing));
  // The shared expert fills the time that the routed ones need.
  return SharedExpert(context, layer.shared, a.u, rows, a.shared);
}

absl::Status HostDecoder::Impl::EndLayer(int32_t index,
                                         const Slice& slice,
                                         Probe* probe) {
  RETURN_IF_ERROR(experts->Finish(slice.ticket, slice.a.y));
  RETURN_IF_ERROR(AddTo(context, slice.a.shared, slice.a.y));
  RETURN_IF_ERROR(AddTo(context, slice.a.y, slice.a.x));
  if (probe != nullptr) probe->Hidden(index, slice.a.x);
  return absl::OkStatus();
}

// While the experts of one slice compute, the other one mixes.
absl::Status HostDecoder::Impl::Layers(std::span<Slice> slices, Probe* probe) {
  for (int32_t index = 0; index < config.num_hidden_layers; ++index) {
    for (Slice& slice : slices) {
      if (index > 0) RETURN_IF_ERROR(EndLayer(index - 1, slice, probe));
      RETURN_IF_ERROR(BeginLayer(index, &slice, probe));
    }
  }
  for (const Slice& slice : slices) {
    RETURN_IF_ERROR(EndLayer(config.num_hidden_layers - 1, slice, probe));
  }
  return absl::OkStatus();
}

// y = mixer(u); every fourth layer is attention.
absl::Status HostDecoder::Impl::Mix(int32_t index, const Slice& slice) {
  const LayerWeights& layer = weights.layers[static_cast<size_t>(index)];
  const RowArrays& a = slice.a;
  const StepBatch& batch = slice.batch;
  if (layer.full_attention) {
    return GatedAttention(
        context, attention, layer.attention, states.kv(index), batch, a.u, a.y);
  }
  return GdnMixer(context, gdn, layer.gdn, states.gdn(index), batch, a.u, a.y);
}

// logits = head u, of the wanted rows only.
absl::Status HostDecoder::Impl::Head(std::span<const int32_t> logit_rows) {
  const auto hidden = static_cast<size_t>(config.hidden_size);
  for (size_t i = 0; i < logit_rows.size(); ++i) {
    std::copy_n(&a.all.u[static_cast<size_t>(logit_rows[i]) * hidden],
                hidden,
                &a.head_in[i * hidden]);
  }
  return MatMul(context,
                a.head_in,
                static_cast<int64_t>(logit_rows.size()),
                weights.head,
                a.logits);
}

absl::StatusOr<StepOutput> HostDecoder::Run(const StepBatch& batch,
                                            std::span<const int32_t> tokens,
                                            std::span<const int32_t> logit_rows,
                                            Probe* probe) {
  Impl& m = *impl_;
  RETURN_IF_ERROR(CheckStep(m.config, m.sizes, batch, tokens, logit_rows));
  m.a.Resize(m.config, batch.rows, static_cast<int64_t>(logit_rows.size()));
  // A probe sees whole layers.
  const int32_t count = m.micro_batches->Begin(batch, probe == nullptr);
  const MicroBatches cut(batch, tokens, count);
  std::vector<Slice> slices;
  for (const MicroBatch& part : cut.all()) {
    slices.push_back({.number = static_cast<int32_t>(slices.size()),
                      .batch = part.batch,
                      .a = m.a.Rows(part.row_begin, part.batch.rows),
                      .ticket = {}});
  }
  m.experts->BeginStep(count);

  const RowArrays& all = m.a.all;
  RETURN_IF_ERROR(Embed(m.context, m.weights.embedding, tokens, all.x));
  if (probe != nullptr) probe->Hidden(-1, all.x);
  RETURN_IF_ERROR(m.Layers(slices, probe));
  RETURN_IF_ERROR(RmsNorm(m.context,
                          all.x,
                          batch.rows,
                          m.weights.final_norm,
                          m.config.rms_norm_eps,
                          all.u));
  RETURN_IF_ERROR(m.Head(logit_rows));
  m.micro_batches->End();
  return StepOutput{.logits = m.a.logits, .hidden = all.u};
}

absl::StatusOr<std::unique_ptr<HostDecoder>> HostDecoder::Create(
    const checkpoint::Checkpoint& checkpoint, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->config = checkpoint.config();
  impl->attention = AttentionShapeOf(impl->config);
  impl->gdn = GdnShapeOf(impl->config);
  ASSIGN_OR_RETURN(impl->weights, LoadDenseWeights(checkpoint));
  impl->experts = options.experts;
  impl->sizes = options.sizes;
  ASSIGN_OR_RETURN(impl->states,
                   StatePool::Create(impl->config, options.sizes));
  impl->context = {
      options.backend, options.pool, &impl->workspace, options.activations};
  impl->micro_batches.emplace(options.micro_batches);
  return std::unique_ptr<HostDecoder>(new HostDecoder(std::move(impl)));
}

HostDecoder::HostDecoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HostDecoder::~HostDecoder() = default;

absl::StatusOr<std::unique_ptr<StepSampler>> HostDecoder::MakeSampler(int32_t) {
  return nullptr;
}
absl::Status HostDecoder::Health() const { return absl::OkStatus(); }

uint64_t HostDecoder::dense_bytes() const { return impl_->weights.bytes(); }
uint64_t HostDecoder::expert_bytes() const { return 0; }
StateBytes HostDecoder::state_bytes() const {
  return StateBytesOf(impl_->config);
}

std::span<const float> HostDecoder::GdnState(int32_t layer,
                                             int32_t slot) const {
  return impl_->states.recurrent_slot(layer, slot);
}

std::span<const float> HostDecoder::ConvState(int32_t layer,
                                              int32_t slot) const {
  return impl_->states.conv_slot(layer, slot);
}

}  // namespace conclave::model
