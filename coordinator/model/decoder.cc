// SPDX-License-Identifier: Apache-2.0

// The forward pass of Qwen3.5 MoE, as the model's description has it:
//
//   x = embed[tokens]
//   for each layer:
//     x = x + mixer(norm(x))       mixer: Gated DeltaNet, or gated attention
//     x = x + moe(norm(x))         moe: routed experts + shared expert
//   logits = head norm(x)
//
// Memory lies elsewhere: weights.h, state_pool.h, activations.h.

#include <algorithm>
#include <utility>

#include "common/status_macros.h"
#include "coordinator/model/activations.h"
#include "coordinator/model/host_decoder.h"
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

struct HostDecoder::Impl {
  absl::Status DecodeLayer(int32_t index, const StepBatch& batch, Probe* probe);
  absl::Status Mix(int32_t index, const StepBatch& batch);
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
};

absl::Status HostDecoder::Impl::DecodeLayer(int32_t index,
                                            const StepBatch& batch,
                                            Probe* probe) {
  const LayerWeights& layer = weights.layers[static_cast<size_t>(index)];
  const float eps = config.rms_norm_eps;
  const int32_t rows = batch.rows;
  const int32_t top_k = config.num_experts_per_tok;

  RETURN_IF_ERROR(RmsNorm(context, a.x, rows, layer.input_norm, eps, a.u));
  RETURN_IF_ERROR(Mix(index, batch));
  RETURN_IF_ERROR(AddTo(context, a.y, a.x));

  RETURN_IF_ERROR(
      RmsNorm(context, a.x, rows, layer.post_attention_norm, eps, a.u));
  RETURN_IF_ERROR(Route(
      context, layer.router, a.u, rows, top_k, a.expert, a.expert_weight));
  const experts::Routing routing{rows, top_k, a.expert, a.expert_weight};
  if (probe != nullptr) probe->Routed(index, routing);
  // The shared expert fills the time that the routed ones need.
  ASSIGN_OR_RETURN(const experts::Ticket ticket,
                   experts->Start(LayerId{index}, a.u, routing));
  RETURN_IF_ERROR(SharedExpert(context, layer.shared, a.u, rows, a.shared));
  RETURN_IF_ERROR(experts->Finish(ticket, a.y));
  RETURN_IF_ERROR(AddTo(context, a.shared, a.y));
  return AddTo(context, a.y, a.x);
}

// y = mixer(u); every fourth layer is attention.
absl::Status HostDecoder::Impl::Mix(int32_t index, const StepBatch& batch) {
  const LayerWeights& layer = weights.layers[static_cast<size_t>(index)];
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
    std::copy_n(&a.u[static_cast<size_t>(logit_rows[i]) * hidden],
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
  m.experts->BeginStep(1);

  RETURN_IF_ERROR(Embed(m.context, m.weights.embedding, tokens, m.a.x));
  if (probe != nullptr) probe->Hidden(-1, m.a.x);
  for (int32_t index = 0; index < m.config.num_hidden_layers; ++index) {
    RETURN_IF_ERROR(m.DecodeLayer(index, batch, probe));
    if (probe != nullptr) probe->Hidden(index, m.a.x);
  }
  RETURN_IF_ERROR(RmsNorm(m.context,
                          m.a.x,
                          batch.rows,
                          m.weights.final_norm,
                          m.config.rms_norm_eps,
                          m.a.u));
  RETURN_IF_ERROR(m.Head(logit_rows));
  return StepOutput{.logits = m.a.logits, .hidden = m.a.u};
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
