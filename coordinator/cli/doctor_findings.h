// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "conclave/v1/config.pb.h"
#include "conclave/v1/links.pb.h"
#include "coordinator/cluster/checkup.h"

namespace conclave::cli {

// What is known of one worker after all measurements.
struct WorkerFindings {
  v1::Worker worker;
  cluster::Checkup checkup;
  absl::Status bind;      // the configuration's rule for its address
  absl::Status link;      // of the probes, where the checkup is well
  absl::Status measured;  // of its own measurements, likewise
  v1::MeasuredWorker figures;
  uint64_t needs_bytes = 0;  // by the plan; 0: not known
};

struct Findings {
  std::string version;  // ours
  bool tls = false;     // the configuration has keys
  std::string listen;   // coordinator.listen
  // OK: free, or our own server answers there.
  absl::Status port;
  absl::Status bind;   // the configuration's rule for the HTTP port
  absl::Status model;  // of opening it
  absl::Status steps;  // of exchanges with all workers and of decode steps
  std::string model_sha256;
  v1::MeasuredCoordinator coordinator;
  uint64_t needs_bytes = 0;  // of the coordinator, by the plan
  std::vector<WorkerFindings> workers;
};

// The part of the findings that a plan can use.
v1::Links LinksOf(const Findings& findings);

}  // namespace conclave::cli
