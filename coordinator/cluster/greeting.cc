// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/greeting.h"

#include "absl/strings/str_cat.h"
#include "common/version.h"

namespace conclave::cluster {

v1::RegisterRequest Greeting(const v1::Worker& worker, uint64_t generation) {
  v1::RegisterRequest hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_coordinator_version(std::string(Version()));
  hello.set_generation(generation);
  hello.set_worker_name(worker.name());
  return hello;
}

absl::Status CheckGreeting(const v1::ClusterConfig& config,
                           const std::string& peer,
                           const v1::RegisterReply& reply) {
  if (config.exchange().over() != "nccl" || reply.backend() == "cuda") {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "register: ",
      peer,
      ": computes on the CPU; exchange.over: nccl needs a GPU on every worker: "
      "start it with --backend cuda, or use exchange.over: grpc"));
}

}  // namespace conclave::cluster
