// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/v1/config.pb.h"

namespace conclave::config {

// Reads a YAML file into the schema by reflection, applies the defaults that
// proto/conclave/v1/config.proto states, expands paths relative to the file,
// and validates. Errors carry file, line and what was meant:
// "cluster.yaml:7: unknown key 'adress' in workers[0]; did you mean 'address'?"
absl::StatusOr<v1::ClusterConfig> LoadClusterConfig(const std::string& path);
absl::StatusOr<v1::ClusterConfig> ParseClusterConfig(
    std::string_view yaml, const std::string& file_name);

// A configuration with defaults only: one process, loopback.
v1::ClusterConfig DefaultClusterConfig();

// Checks that hold for every program: unique names, HOST:PORT addresses, TLS
// files given all together, deadlines > 0, known enum words.
absl::Status Validate(const v1::ClusterConfig& config);

struct HostPort {
  std::string host;
  int port = 0;
};
absl::StatusOr<HostPort> ParseHostPort(std::string_view address);
bool IsLoopback(const HostPort& address);

// How long a process of this cluster spins: `wanted` microseconds, or 0 (block
// at once) where the processes that spin on its machine outnumber the cores.
// Coordinator and workers with loopback addresses share one machine.
int32_t SpinUs(const v1::ClusterConfig& config, int32_t wanted, int32_t cores);

// The rule for binds outside loopback: HTTP needs a key, the exchange needs
// mutual TLS, unless insecure: true. FailedPrecondition with the remedy.
absl::Status CheckHttpBind(const v1::ClusterConfig& config);
absl::Status CheckWorkerBind(const v1::ClusterConfig& config,
                             const v1::Worker& worker);

// The worker of that name; NotFound lists the names that exist.
absl::StatusOr<v1::Worker> FindWorker(const v1::ClusterConfig& config,
                                      std::string_view name);

}  // namespace conclave::config
