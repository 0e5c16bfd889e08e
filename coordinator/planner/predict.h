// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/planner/plan.h"

namespace conclave::planner {

// Fills in the times of a plan whose holdings are set: docs/exchange-and-
// kernels 7.1, "expected".
void Predict(const Request& request, Plan& plan);

// Where the experts of some layers are: by node, parts that sum to 1.
struct LayerShares {
  int32_t layers = 0;
  std::vector<double> share;
};
// Likewise, for a split of these layers. The plan's holdings are set.
void PredictLayers(const Request& request,
                   Split split,
                   const std::vector<LayerShares>& layers,
                   Plan& plan);

// E (1 - (1 - k/E)^B): experts of a layer that a step of B tokens touches, if
// routing is uniform.
double DistinctExperts(const checkpoint::ModelConfig& shape, int32_t tokens);

}  // namespace conclave::planner
