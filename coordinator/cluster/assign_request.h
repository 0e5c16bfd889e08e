// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/slices.h"
#include "conclave/v1/config.pb.h"
#include "conclave/v1/control.pb.h"

namespace conclave::cluster {

// What workers(index) of the configuration is to hold, where it may find it
// and who else may have it; delivery::Supply::Describe adds the rest.
// `config_sha256`: of the checkpoint's config.json, hex.
v1::AssignRequest MakeAssign(const v1::ClusterConfig& config,
                             const Placement& placement,
                             const std::string& config_sha256,
                             size_t index,
                             uint64_t generation);

}  // namespace conclave::cluster
