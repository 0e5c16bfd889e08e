// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/cli/doctor_findings.h"

namespace conclave::cli {

struct DoctorOptions {
  v1::ClusterConfig config;
  bool quick = false;  // no decode steps on this machine
  Clock* clock = nullptr;
  std::function<void(const std::string& line)> say;  // progress
};

// Reaches and measures everything that the configuration names; what is wrong
// becomes a finding. NotFound: a TLS file of the configuration.
absl::StatusOr<Findings> Examine(const DoctorOptions& options);

}  // namespace conclave::cli
