// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/deployment.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/cli/progress.h"
#include "coordinator/cli/table.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/experts/local_experts.h"
#include "coordinator/experts/local_shards.h"

namespace conclave::cli {

struct Deployment::Impl {
  v1::ClusterConfig config;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint;
  Placement placement;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<experts::LocalShards> shards;  // the coordinator's own
  std::unique_ptr<experts::Experts> experts;

  absl::Status MakeLocal(const Options& options);
};

namespace {

// Spinning helpers only where every one of them has a core.
int32_t SpinOf(const v1::ClusterConfig& config, int32_t threads) {
  if (config.coordinator().spin_us() < 0 || threads > AvailableCores()) {
    return 0;
  }
  return config.coordinator().spin_us();
}

}  // namespace

absl::Status Deployment::Impl::MakeLocal(const Options& options) {
  Progress progress(options.clock, options.show_progress);
  const auto on_load = [&](uint64_t done, uint64_t total) {
    progress.Update("experts", done, total);
  };
  ASSIGN_OR_RETURN(shards,
                   experts::LocalShards::Load(
                       *checkpoint, placement, std::nullopt, on_load));
  ASSIGN_OR_RETURN(
      experts,
      experts::LocalExperts::Create(placement,
                                    checkpoint->config().expert_shape(),
                                    shards.get(),
                                    options.backend,
                                    pool.get()));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Deployment>> Deployment::Create(
    const v1::ClusterConfig& config, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  ASSIGN_OR_RETURN(impl->checkpoint,
                   checkpoint::Checkpoint::Open(config.model()));
  ASSIGN_OR_RETURN(
      impl->placement,
      cluster::MakePlacement(config,
                             impl->checkpoint->config().expert_shape()));
  int32_t threads = options.threads;
  if (threads <= 0) threads = config.coordinator().threads();
  if (threads <= 0) threads = AvailableCores();
  impl->pool = std::make_unique<ThreadPool>(threads, SpinOf(config, threads));
  RETURN_IF_ERROR(impl->MakeLocal(options));
  return std::unique_ptr<Deployment>(new Deployment(std::move(impl)));
}

Deployment::Deployment(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Deployment::~Deployment() = default;

const checkpoint::Checkpoint& Deployment::checkpoint() const {
  return *impl_->checkpoint;
}
experts::Experts* Deployment::experts() { return impl_->experts.get(); }
ThreadPool* Deployment::pool() { return impl_->pool.get(); }
absl::Status Deployment::Ready() const { return absl::OkStatus(); }

}  // namespace conclave::cli
