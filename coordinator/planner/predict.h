// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/planner/plan.h"

namespace conclave::planner {

// Fills in the times of a plan whose holdings are set: docs/exchange-and-
// kernels 7.1, "expected".
void Predict(const Request& request, Plan& plan);

// E (1 - (1 - k/E)^B): experts of a layer that a step of B tokens touches, if
// routing is uniform.
double DistinctExperts(const checkpoint::ModelConfig& shape, int32_t tokens);

}  // namespace conclave::planner
