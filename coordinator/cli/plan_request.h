// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/slices.h"
#include "conclave/v1/config.pb.h"
#include "conclave/v1/links.pb.h"
#include "coordinator/cli/placing.h"
#include "coordinator/planner/plan.h"

namespace conclave::cli {

// What the flags of `conclave plan` ask for.
struct PlanRequest {
  planner::Request request;
  // As `conclave serve` would deal the experts out, and how it comes to that;
  // where there is a cluster file with workers, and a checkpoint.
  std::optional<Placement> placement;
  std::string how;
  std::optional<CacheBytes> caches;  // as it would reserve them
  std::string refusal;               // why it would not start, in place of both
  // Which numbers are measurements, a line each.
  std::vector<std::string> measured;
};

// --shape, --format, --nodes, --config, --links and the rest. InvalidArgument
// and NotFound name flag, file and field.
absl::StatusOr<PlanRequest> PlanRequestFromFlags();

// Shape, format and held bytes of a checkpoint on disk; reads no weights.
absl::Status DescribeModel(const checkpoint::Checkpoint& checkpoint,
                           planner::Request* request);

// The cluster's own nodes and wire; `links`: a file of `conclave doctor --out`
// that replaces what is stated, or empty. The model is described before.
absl::Status UseNodes(const v1::ClusterConfig& config,
                      const std::string& links,
                      PlanRequest* plan);

// Replaces what is stated by what was measured in `file`; nodes go by name.
// Steps count only for the model that they were measured with.
void ApplyLinks(const v1::Links& links,
                const std::string& file,
                const std::string& model_sha256,
                PlanRequest* plan);

}  // namespace conclave::cli
