// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/slices.h"
#include "conclave/v1/links.pb.h"
#include "coordinator/planner/plan.h"

namespace conclave::cli {

// What the flags of `conclave plan` ask for.
struct PlanRequest {
  planner::Request request;
  // As the cluster file deals the experts out, where there is one.
  std::optional<Placement> placement;
  // Which numbers are measurements, a line each.
  std::vector<std::string> measured;
};

// --shape, --format, --nodes, --config, --links and the rest. InvalidArgument
// and NotFound name flag, file and field.
absl::StatusOr<PlanRequest> PlanRequestFromFlags();

// Replaces what is stated by what was measured in `file`; nodes go by name.
// Steps count only for the model that they were measured with.
void ApplyLinks(const v1::Links& links,
                const std::string& file,
                const std::string& model_sha256,
                PlanRequest* plan);

}  // namespace conclave::cli
