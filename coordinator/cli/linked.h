// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "common/checkpoint/model_config.h"
#include "common/slices.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/experts/linked_experts.h"
#include "coordinator/model/decoder.h"
#include "kernels/context.h"

namespace conclave::cli {

// Whether rows travel to workers from device to device.
bool IsLinked(const v1::ClusterConfig& config);

// InvalidArgument: exchange.over: nccl without a GPU on the coordinator, or
// with activations that are rounded.
absl::Status CheckLinked(const v1::ClusterConfig& config,
                         kernels::Backend backend);

// Of a coordinator with these caches. `routed_here`: layers whose experts are
// on its GPU. What the cluster does and the clock are still to come.
experts::LinkedOptions LinkedOptionsOf(const v1::ClusterConfig& config,
                                       const Placement& placement,
                                       const checkpoint::ModelConfig& model,
                                       const std::vector<bool>& routed_here,
                                       const model::StateSizes& caches,
                                       kernels::Activations activations);

// The cluster outlives the experts.
void UseCluster(cluster::Cluster* cluster, experts::LinkedOptions* options);

}  // namespace conclave::cli
