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

// Seconds of one layer, experts and exchange apart.
struct LayerTime {
  double experts = 0;
  double exchange = 0;
};

// Mean over the layers. Asked often: no copy.
uint64_t ExpertBytes(const Request& r) {
  return r.held.has_value() ? r.held->bytes.expert
                            : ResidentBytes(r.shape, r.format).expert;
}

// Seconds of `active` experts of a layer, `entries` (expert, row) pairs.
double ExpertSeconds(const Request& r,
                     const Node& node,
                     double active,
                     double entries) {
  const double bytes = active * D(ExpertBytes(r));
  if (node.experts.bytes_per_s <= 0) {
    const double reached =
        r.sequences <= kFewTokens ? kExpertShareFew : kExpertShareMany;
    return bytes / (node.bytes_per_s * reached);
  }
  const double more = std::max(0.0, entries / std::max(active, 1e-9) - 1);
  return node.experts.call_s +
         bytes / node.experts.bytes_per_s * (1 + node.experts.row_share * more);
}

// Experts of a layer that a node with this share of it works on.
double Active(const Request& r, Split split, double share, size_t holders) {
  const double mean = DistinctExperts(r.shape, r.sequences) * share;
  if (split != Split::kExperts) return mean;
  // Whole experts fall unevenly: the busiest holder has more.
  const double most =
      std::min(D(static_cast<uint64_t>(r.sequences) *
                 static_cast<uint64_t>(r.shape.num_experts_per_tok)),
               share * r.shape.num_experts);
  return std::min(most,
                  mean + LargestOf(holders) * std::sqrt(mean * (1 - share)));
}

// Part of the rows that a node with this share of whole experts gets.
double RowPart(const Request& r, Split split, double share) {
  if (split != Split::kExperts) return 1;
  return 1 - std::pow(1 - share, r.shape.num_experts_per_tok);
}

// Both ways of all rows of a layer. Each worker has its link, and all share
// the coordinator's end; without a measurement of that one, nothing overlaps.
double WireSeconds(const Request& r, Split split, const LayerShares& layer) {
  const double width = r.shape.hidden_size;
  double out = 0, back = 0, slowest_out = 0, slowest_back = 0;
  double out_bytes = 0, back_bytes = 0;
  for (size_t i = 1; i < layer.share.size(); ++i) {
    if (layer.share[i] <= 0) continue;
    const Link& link = r.nodes[i].link;
    const double rows = r.sequences * RowPart(r, split, layer.share[i]);
    const double to = rows * width * r.row_element_bytes;
    const double from = rows * width * r.reply_element_bytes;
    out += to / link.bytes_per_s;
    back += from / link.back_bytes_per_s;
    slowest_out = std::max(slowest_out, to / link.bytes_per_s);
    slowest_back = std::max(slowest_back, from / link.back_bytes_per_s);
    out_bytes += to;
    back_bytes += from;
  }
  const HomeSpeed& home = r.home;
  if (home.all_out_bytes_per_s > 0) {
    out = std::max(slowest_out, out_bytes / home.all_out_bytes_per_s);
  }
  if (home.all_back_bytes_per_s > 0) {
    back = std::max(slowest_back, back_bytes / home.all_back_bytes_per_s);
  }
  return out + back;
}

// One layer at decode. Holders run side by side, so the slowest counts.
// `step`: its parts by layer; what overlaps is done meanwhile.
LayerTime OneLayer(const Request& r,
                   Split split,
                   const LayerShares& layer,
                   const MeasuredStep& step) {
  const auto holders = static_cast<size_t>(std::count_if(
      layer.share.begin(), layer.share.end(), [](double s) { return s > 0; }));
  const auto entries = [&](double share) {
    return share * r.sequences * r.shape.num_experts_per_tok;
  };
  const double local = layer.share[0], overlap = step.overlap;
  const double own = local <= 0
                         ? 0
                         : ExpertSeconds(r,
                                         r.nodes[0],
                                         Active(r, split, local, holders),
                                         entries(local));
  double remote = 0, round_trip = 0, workers = 0;
  for (size_t i = 1; i < layer.share.size(); ++i) {
    const double share = layer.share[i];
    if (share <= 0) continue;
    const double active = Active(r, split, share, holders);
    remote =
        std::max(remote, ExpertSeconds(r, r.nodes[i], active, entries(share)));
    round_trip = std::max(round_trip, r.nodes[i].link.round_trip_s);
    workers += 1;
  }
  if (workers == 0) return {.experts = own, .exchange = 0};
  const double exchange =
      round_trip + workers * step.fan_out + WireSeconds(r, split, layer);
  if (own + overlap >= exchange + remote) return {own, 0};
  // What overlaps was counted as weights.
  return {remote - std::max(0.0, overlap - exchange),
          std::max(0.0, exchange - overlap)};
}

// Of measured steps, between and beyond them in a straight line.
MeasuredStep StepOf(const std::vector<MeasuredStep>& steps, int32_t sequences) {
  if (steps.size() == 1 || sequences <= steps[0].sequences) return steps[0];
  size_t at = 1;
  while (at + 1 < steps.size() && steps[at].sequences < sequences) ++at;
  const MeasuredStep &a = steps[at - 1], &b = steps[at];
  const double part = D(static_cast<uint64_t>(sequences - a.sequences)) /
                      (b.sequences - a.sequences);
  return {.sequences = sequences,
          .seconds = a.seconds + part * (b.seconds - a.seconds),
          .overlap = a.overlap + part * (b.overlap - a.overlap),
          .fan_out = a.fan_out + part * (b.fan_out - a.fan_out)};
}

// Seconds of one token in a chunk of a prefill.
double PrefillToken(const Request& r, const Plan& plan) {
  const auto& m = r.shape;
  const WeightBytes bf16 = ResidentBytes(m, WeightFormat::kBf16);
  const WeightBytes held = HeldBy(r).bytes;
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
  double held_experts = 0;
  for (const Holding& h : plan.nodes) held_experts += D(h.experts);
  const auto part = [&](const Holding& h) {
    return layer * layers * D(h.experts) / held_experts;
  };
  const double local = part(plan.nodes[0]);
  const double compute =
      (D(bf16.dense) + attention + recurrence + local) / home.flops;
  const double reads =
      (D(held.dense) + D(plan.nodes[0].experts)) / home.bytes_per_s / kChunk;
  double seconds = std::max(compute, reads);
  double slowest = 0, wire = 0;
  for (size_t i = 1; i < plan.nodes.size(); ++i) {
    if (plan.nodes[i].experts == 0) continue;
    const Node& node = r.nodes[i];
    const double read = D(plan.nodes[i].experts) / node.bytes_per_s / kChunk;
    slowest = std::max({slowest, part(plan.nodes[i]) / node.flops, read});
    const double row = 1.0 * m.hidden_size * plan.remote_layers;
    wire += row * r.row_element_bytes / node.link.bytes_per_s +
            row * r.reply_element_bytes / node.link.back_bytes_per_s;
  }
  return seconds + slowest + wire;
}

}  // namespace

double DistinctExperts(const checkpoint::ModelConfig& shape, int32_t tokens) {
  const double experts = shape.num_experts;
  const double missed = 1 - shape.num_experts_per_tok / experts;
  return experts * (1 - std::pow(missed, tokens));
}

void PredictLayers(const Request& r,
                   Split split,
                   const std::vector<LayerShares>& layers,
                   Plan& plan) {
  const Node& home = r.nodes[0];
  const double reached = home.bytes_per_s * kDenseShare;
  StepTime& step = plan.step;
  MeasuredStep measured;
  if (r.home.steps.empty()) {
    step.weights = D(HeldBy(r).bytes.dense) / reached;
    // The state is read and written; keys and values are read.
    step.state = (2 * D(plan.nodes[0].state) + D(plan.nodes[0].kv)) / reached;
    step.fixed = kGapPerLayer * r.shape.num_hidden_layers + kHostPerStep;
  } else {
    // Gaps and recurrent state are part of what was measured.
    measured = StepOf(r.home.steps, r.sequences);
    step.weights = measured.seconds;
    step.state = D(plan.nodes[0].kv) / reached;
    step.fixed = 0;
    measured.overlap /= r.shape.num_hidden_layers;
  }
  step.experts = step.exchange = 0;
  for (const LayerShares& some : layers) {
    const LayerTime time = OneLayer(r, split, some, measured);
    step.experts += some.layers * time.experts;
    step.exchange += some.layers * time.exchange;
  }
  plan.decode_tokens_per_s = r.sequences / step.Total();
  plan.prefill_tokens_per_s = 1 / PrefillToken(r, plan);
}

void Predict(const Request& r, Plan& plan) {
  std::vector<LayerShares> layers;
  if (plan.local_layers > 0) {
    LayerShares local{plan.local_layers, std::vector<double>(r.nodes.size())};
    local.share[0] = 1;
    layers.push_back(std::move(local));
  }
  if (plan.remote_layers > 0) {
    LayerShares remote{plan.remote_layers, {}};
    int32_t units = 0;
    for (const Holding& h : plan.nodes) units += h.units;
    for (const Holding& h : plan.nodes) {
      remote.share.push_back(static_cast<double>(h.units) / units);
    }
    layers.push_back(std::move(remote));
  }
  PredictLayers(r, plan.split, layers, plan);
}

}  // namespace conclave::planner
