// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "conclave/v1/config.pb.h"
#include "conclave/v1/control.pb.h"

namespace conclave::cluster {

// The first call to a worker, of that life of the coordinator.
v1::RegisterRequest Greeting(const v1::Worker& worker, uint64_t generation);

// FailedPrecondition: the worker computes on what exchange.over cannot use.
// `peer` names it.
absl::Status CheckGreeting(const v1::ClusterConfig& config,
                           const std::string& peer,
                           const v1::RegisterReply& reply);

}  // namespace conclave::cluster
