// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/slices.h"
#include "coordinator/planner/devices.h"
#include "coordinator/planner/held.h"
#include "coordinator/planner/shapes.h"

namespace conclave::planner {

// A decode step of one model without its routed experts, as measured.
struct MeasuredStep {
  int32_t sequences = 1;
  double seconds = 0;
  double overlap = 0;  // part of it while experts are at work
  double fan_out = 0;  // of a worker and layer, beyond what its link takes
};

// What was measured at the coordinator; zeros and no steps: nothing.
struct HomeSpeed {
  double all_out_bytes_per_s = 0;  // to all workers at once
  double all_back_bytes_per_s = 0;
  std::vector<MeasuredStep> steps;  // ascending by sequences
};

struct Request {
  checkpoint::ModelConfig shape;
  WeightFormat format = WeightFormat::kBf16;
  // Of the checkpoint at hand; nothing: as the format has it throughout.
  std::optional<HeldWeights> held;
  std::vector<Node> nodes;  // the first is the coordinator
  int32_t context = 16384;  // tokens of every sequence
  int32_t sequences = 1;    // at once
  // Of the caches, where they are known; nothing: context x sequences.
  std::optional<uint64_t> kv_bytes, state_bytes;
  int32_t kv_element_bytes = 2;
  int32_t state_element_bytes = 4;
  int32_t row_element_bytes = 2;    // of rows on the wire
  int32_t reply_element_bytes = 2;  // of partial sums
  HomeSpeed home;
};

// How the experts of the layers that are not local are dealt out.
enum class Split { kNone, kColumns, kExperts };
std::string_view Name(Split split);

// What a node holds, in bytes.
struct Holding {
  std::string node;
  uint64_t dense = 0;  // coordinator: all but the routed experts
  uint64_t experts = 0;
  uint64_t kv = 0;
  uint64_t state = 0;      // GDN and convolution
  uint64_t workspace = 0;  // of the kernels, estimate
  uint64_t memory = 0;
  int32_t units = 0;  // columns or experts of each remote layer
  uint64_t Used() const { return dense + experts + kv + state + workspace; }
  uint64_t Headroom() const { return memory - Used(); }
};

// One decode step of all sequences, in seconds.
struct StepTime {
  double weights = 0;   // everything but routed experts
  double experts = 0;   // the slowest node of every layer
  double state = 0;     // KV and GDN state
  double exchange = 0;  // round trips and bytes
  double fixed = 0;     // gaps between kernels, sampling, host
  double Total() const { return weights + experts + state + exchange + fixed; }
};

struct Plan {
  std::vector<Holding> nodes;  // as asked; unused workers hold nothing
  int32_t local_layers = 0;    // [0, local_layers): experts on the coordinator
  int32_t remote_layers = 0;
  Split split = Split::kNone;
  int32_t unit = 0;  // columns of a unit, if kColumns
  StepTime step;
  double decode_tokens_per_s = 0;   // of all sequences together
  double prefill_tokens_per_s = 0;  // in chunks of 2,048
};

// The plan that uses every worker: whole layers on the coordinator, then slices
// or whole experts of the remaining layers over the workers, shares by speed
// within each node's memory (docs/exchange-and-kernels 6.2); of these the one
// that is predicted fastest, by section 7.1.
// ResourceExhausted says how much is needed and how much there is.
absl::StatusOr<Plan> MakePlan(const Request& request);

// A plan for given shares, in units of each remote layer by worker: what the
// solver compares. `units` sums to the units of a layer.
struct Deal {
  Split split = Split::kNone;
  int32_t local_layers = 0;  // at most; fewer where there is no room
};
absl::StatusOr<Plan> PlanWith(const Request& request,
                              const Deal& deal,
                              const std::vector<int32_t>& units);

// The slices of a plan: the coordinator's layers in one shard, the other layers
// in one shard per worker that holds any; holders as in PlanOf. Passes
// conclave::Validate.
Placement PlacementOf(const Request& request, const Plan& plan);

// request.held, or what the format gives.
HeldWeights HeldBy(const Request& request);

// The coordinator's part alone, and every node's memory.
absl::StatusOr<Plan> EmptyPlan(const Request& request);
uint64_t Workspace(const Node& node);

// The plan that a placement is, whether it fits or not: nodes as in the
// request, holder i of the placement is node i + 1. InvalidArgument: a holder
// that the request lacks.
absl::StatusOr<Plan> PlanOf(const Request& request, const Placement& placement);

// Predicted decode speed with the best 0, 1, 2 .. workers; 0 where it does not
// fit. The place of the largest is how many workers to use.
std::vector<double> DecodeByWorkers(const Request& request);

}  // namespace conclave::planner
