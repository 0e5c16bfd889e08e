// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/assign_request.h"

#include <filesystem>

#include "absl/strings/escaping.h"
#include "coordinator/cluster/placement.h"

namespace conclave::cluster {

v1::AssignRequest MakeAssign(const v1::ClusterConfig& config,
                             const Placement& placement,
                             const std::string& config_sha256,
                             size_t index,
                             uint64_t generation) {
  const v1::Worker& worker = config.workers(static_cast<int>(index));
  v1::AssignRequest request;
  request.set_generation(generation);
  // A worker that was started elsewhere has another working directory.
  std::error_code error;
  const std::string model =
      worker.model().empty() ? config.model() : worker.model();
  const auto absolute = std::filesystem::absolute(model, error);
  if (model != "off") request.set_model(error ? model : absolute.string());
  request.set_config_hash(absl::HexStringToBytes(config_sha256));
  AddShards(placement, static_cast<WorkerId>(index), request);
  for (const v1::Worker& other : config.workers()) {
    if (other.name() == worker.name()) continue;
    v1::Peer* peer = request.add_peers();
    peer->set_name(other.name());
    peer->set_address(other.address());
  }
  request.set_activations(config.coordinator().activations());
  request.set_verify_local(config.delivery().verify_local());
  return request;
}

}  // namespace conclave::cluster
