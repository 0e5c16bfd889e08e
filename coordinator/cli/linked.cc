// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/linked.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "coordinator/model/device_memory.h"

namespace conclave::cli {
namespace {

experts::LinkPeer PeerOf(const cluster::WorkerState& state) {
  experts::LinkPeer out;
  out.silent = state.phase == cluster::Phase::kSilent;
  out.link = state.link;
  out.step = state.link_step;
  out.layers = state.link_layers;
  out.error = state.link_error;
  if (state.phase == cluster::Phase::kReady || out.silent) return out;
  out.gone = absl::UnavailableError(
      absl::StrCat("phase ",
                   std::string(cluster::Name(state.phase)),
                   std::string(cluster::Before(state)),
                   std::string(state.error.message())));
  return out;
}

v1::JoinRequest RequestOf(const experts::LinkInvitation& invitation) {
  v1::JoinRequest out;
  out.set_link(invitation.link);
  out.set_id(invitation.id);
  out.set_rank(invitation.rank);
  out.set_ranks(invitation.ranks);
  out.set_rows_max(invitation.rows_max);
  out.set_per_row(invitation.per_row);
  out.set_experts(invitation.experts);
  out.set_join_s(absl::ToDoubleSeconds(invitation.join));
  out.set_exchange_s(absl::ToDoubleSeconds(invitation.exchange));
  return out;
}

}  // namespace

bool IsLinked(const v1::ClusterConfig& config) {
  return config.workers_size() > 0 && config.exchange().over() == "nccl";
}

absl::Status CheckLinked(const v1::ClusterConfig& config,
                         kernels::Backend backend) {
  if (!IsLinked(config)) return absl::OkStatus();
  if (backend == kernels::Backend::kCuda) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "exchange.over: nccl needs a GPU on the coordinator too: take the "
      "backend cuda for it (serve: --backend, bench: --backends), in a build "
      "with CUDA, or use exchange.over: grpc");
}

experts::LinkedOptions LinkedOptionsOf(const v1::ClusterConfig& config,
                                       const Placement& placement,
                                       const checkpoint::ModelConfig& model,
                                       const std::vector<bool>& routed_here,
                                       const model::StateSizes& caches,
                                       kernels::Activations activations) {
  const int32_t rows =
      caches.step_rows > 0 ? caches.step_rows : limits::kStepRowsMax;
  experts::LinkedOptions out;
  out.placement = placement;
  out.shape = model.expert_shape();
  out.workers = config.workers_size();
  out.per_row = model.num_experts_per_tok + 1;
  out.rows_max = model::FilledRowsMax(rows, caches.state_slots);
  out.exact = activations == kernels::Activations::kF32;
  out.routed_here = routed_here;
  out.connect = absl::Seconds(config.deadlines().connect_s());
  out.deadline = absl::Seconds(config.deadlines().exchange_s());
  return out;
}

void UseCluster(cluster::Cluster* cluster, experts::LinkedOptions* options) {
  options->transport = cluster->transport();
  options->generation = cluster->generation();
  options->look = [cluster](WorkerId worker) {
    return PeerOf(cluster->Look(worker));
  };
  options->join = [cluster](WorkerId worker,
                            const experts::LinkInvitation& invitation) {
    return cluster->Join(worker, RequestOf(invitation));
  };
}

}  // namespace conclave::cli
