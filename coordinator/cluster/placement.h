// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/slices.h"
#include "conclave/v1/config.pb.h"
#include "conclave/v1/control.pb.h"

namespace conclave::cluster {

// Who holds which slices, from the configuration alone: the same file and
// model give the same placement on every machine.
//
// * `placement.explicit` wins: one shard per entry, in the file's order.
// * No workers: one shard, held by the coordinator.
// * `placement.shards` unset: one shard per holder, sized by its share.
// * `placement.shards` set: that many shards of equal size, dealt out to the
//   holders by share. The list of shards, and so every bit of the result, is
//   then the same for any set of workers.
//
// Holders are the coordinator, if coordinator_share > 0, then the workers in
// the file's order. Shares are relative to each other; rounding is by largest
// remainder. InvalidArgument names the field and the worker. The result passes
// conclave::Validate.
absl::StatusOr<Placement> MakePlacement(const v1::ClusterConfig& config,
                                        const ExpertShape& shape);

// Adds the shards that `holder` has to an assignment.
void AddShards(const Placement& placement,
               WorkerId holder,
               v1::AssignRequest& request);

// One line per shard, for logs: "shard 0: coordinator, 128 slices".
std::string ToString(const Placement& placement,
                     const v1::ClusterConfig& config);

}  // namespace conclave::cluster
