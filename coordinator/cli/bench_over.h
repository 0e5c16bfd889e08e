// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/v1/config.pb.h"

// `conclave bench decode` of one model over several ways of exchange: alone in
// this process, or with the workers of a cluster file over gRPC or NCCL.
namespace conclave::cli {

// Whether the flags and the file ask for that: --over, --backends cuda, or a
// file with exchange.over: nccl or coordinator.backend: cuda.
bool ComparesWays(const v1::ClusterConfig& config);

// "local,grpc,nccl"; empty: as the file says. InvalidArgument: another word,
// one twice, or grpc or nccl of a file without workers.
absl::StatusOr<std::vector<std::string>> ParseWays(
    const std::string& words, const v1::ClusterConfig& config);

// What the cluster of that file is like over one of them: `local` is without
// workers and placement. Errors as config::Validate, and for `nccl` as
// CheckWorkerBind, whose rules are stricter then.
absl::StatusOr<v1::ClusterConfig> ConfigOver(const v1::ClusterConfig& config,
                                             const std::string& way);

// Brings the cluster up for one way after the other, measures, prints a table.
// Errors begin with the way; the table has those measured before. --gpus and
// what goes with it are for `local`.
absl::Status BenchOver(const v1::ClusterConfig& config);

}  // namespace conclave::cli
