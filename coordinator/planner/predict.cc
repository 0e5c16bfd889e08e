// SPDX-License-Identifier: Apache-2.0
#include "coordinator/planner/predict.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace conclave::planner {
namespace {

// Parts of the read bandwidth that kernels reach.
constexpr double kDenseShare = 0.75;
constexpr double kExpertShareFew = 0.65, kExpertShareMany = 0.60;
constexpr int32_t kFewTokens = 8;
constexpr double kGapPerLayer = 5e-6;   // between kernels
constexpr double kHostPerStep = 60e-6;  // sampling and host
constexpr int32_t kChunk = 2048;        // tokens of a prefill step

double D(uint64_t value) { return static_cast<double>(value); }

// Mean of the largest of n standard normal values that sum to zero, n = 1 ..;
// beyond the table the last.
double LargestOf(size_t n) {
  constexpr std::array<double, 9> kLargest = {
      0, 0, 0.564, 0.846, 1.029, 1.163, 1.267, 1.352, 1.424};
  const double one = kLargest[std::min(n, kLargest.size() - 1)];
  return n < 2 ? 0 : one * std::sqrt(D(n) / (D(n) - 1));
}

struct Remote {
  double seconds = 0;   // of the slowest worker in one layer
  double exchange = 0;  // likewise, there and back
};

// One remote layer at decode. Workers run side by side, so the slowest counts.
Remote RemoteLayer(const Request& r, const Plan& plan, double expert_share) {
  const double expert = D(ResidentBytes(r.shape, r.format).expert);
  const double distinct = DistinctExperts(r.shape, r.sequences);
  const double row = D(static_cast<uint64_t>(r.shape.hidden_size)) *
                     r.row_element_bytes * r.sequences;
  int32_t units = 0;
  size_t workers = 0;
  for (const Holding& h : plan.nodes) {
    units += h.units;
    workers += h.units > 0 ? 1 : 0;
  }
  Remote out;
  double port = 0;  // the coordinator's end carries every worker's rows
  for (size_t i = 1; i < plan.nodes.size(); ++i) {
    if (plan.nodes[i].units == 0) continue;
    const Node& node = r.nodes[i];
    const double share = D(plan.nodes[i].units) / units;
    double active = distinct * share;
    if (plan.split == Split::kExperts) {
      // Whole experts fall unevenly: the busiest worker has more.
      active += LargestOf(workers) * std::sqrt(active * (1 - share));
    }
    out.seconds = std::max(out.seconds,
                           active * expert / (node.bytes_per_s * expert_share));
    port += 2 * row / node.link.bytes_per_s;
    out.exchange = std::max(out.exchange, node.link.round_trip_s);
  }
  out.exchange += port;
  return out;
}

// Seconds of one token in a chunk of a prefill.
double PrefillToken(const Request& r, const Plan& plan) {
  const auto& m = r.shape;
  const WeightBytes bf16 = ResidentBytes(m, WeightFormat::kBf16);
  const WeightBytes held = ResidentBytes(m, r.format);
  const double layers = m.num_hidden_layers;
  const auto full = D(static_cast<uint64_t>(
      std::count(m.full_attention.begin(), m.full_attention.end(), true)));
  const Node& home = r.nodes[0];
  // Two operations per weight; half of its bf16 bytes are its weights.
  const double attention =
      4.0 * m.num_attention_heads * m.head_dim * r.context / 2 * full;
  const double recurrence = 8.0 * m.linear_key_head_dim *
                            m.linear_value_head_dim * m.linear_num_value_heads *
                            (layers - full);
  const double layer = D(bf16.expert) * m.num_experts_per_tok;
  const double local = layer * plan.local_layers;
  const double compute =
      (D(bf16.dense) + attention + recurrence + local) / home.flops;
  const double reads =
      (D(held.dense) + D(plan.nodes[0].experts)) / home.bytes_per_s / kChunk;
  double seconds = std::max(compute, reads);
  double slowest = 0, wire = 0;
  int32_t units = 0;
  for (const Holding& h : plan.nodes) units += h.units;
  for (size_t i = 1; i < plan.nodes.size(); ++i) {
    if (plan.nodes[i].units == 0) continue;
    const Node& node = r.nodes[i];
    const double part =
        layer * plan.remote_layers * plan.nodes[i].units / units / node.flops;
    const double read = D(plan.nodes[i].experts) / node.bytes_per_s / kChunk;
    slowest = std::max({slowest, part, read});
    wire += 2.0 * m.hidden_size * r.row_element_bytes * plan.remote_layers /
            node.link.bytes_per_s;
  }
  return seconds + slowest + wire;
}

}  // namespace

double DistinctExperts(const checkpoint::ModelConfig& shape, int32_t tokens) {
  const double experts = shape.num_experts;
  const double missed = 1 - shape.num_experts_per_tok / experts;
  return experts * (1 - std::pow(missed, tokens));
}

void Predict(const Request& r, Plan& plan) {
  const WeightBytes weights = ResidentBytes(r.shape, r.format);
  const Node& home = r.nodes[0];
  const double share =
      r.sequences <= kFewTokens ? kExpertShareFew : kExpertShareMany;
  StepTime& step = plan.step;
  step.weights = D(weights.dense) / (home.bytes_per_s * kDenseShare);
  // The state is read and written; keys and values are read.
  step.state = (2 * D(plan.nodes[0].state) + D(plan.nodes[0].kv)) /
               (home.bytes_per_s * kDenseShare);
  step.experts = plan.local_layers * DistinctExperts(r.shape, r.sequences) *
                 D(weights.expert) / (home.bytes_per_s * share);
  step.fixed = kGapPerLayer * r.shape.num_hidden_layers + kHostPerStep;
  if (plan.remote_layers > 0) {
    const Remote remote = RemoteLayer(r, plan, share);
    step.experts += plan.remote_layers * remote.seconds;
    step.exchange = plan.remote_layers * remote.exchange;
  }
  plan.decode_tokens_per_s = r.sequences / step.Total();
  plan.prefill_tokens_per_s = 1 / PrefillToken(r, plan);
}

}  // namespace conclave::planner
