// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/memory_cluster.h"

#include <gtest/gtest.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/delivery/storage_proto.h"
#include "conclave/v1/control.pb.h"
#include "coordinator/cluster/placement.h"
#include "tests/testing/golden.h"

namespace conclave::testing {
namespace {

v1::AssignRequest AssignmentOf(const Placement& placement, WorkerId worker) {
  v1::AssignRequest request;
  request.set_generation(MemoryCluster::kGeneration);
  request.set_model(TinyModel().folder());
  request.set_config_hash(
      absl::HexStringToBytes(TinyModel().config().config_sha256));
  cluster::AddShards(placement, worker, request);
  EXPECT_TRUE(delivery::DescribeSlices(TinyModel(), &request).ok());
  return request;
}

}  // namespace

v1::ClusterConfig Workers(const std::vector<double>& shares) {
  v1::ClusterConfig config;
  for (size_t i = 0; i < shares.size(); ++i) {
    v1::Worker* worker = config.add_workers();
    worker->set_name(absl::StrCat("w", i));
    worker->set_share(shares[i]);
  }
  return config;
}

MemoryCluster::MemoryCluster(const v1::ClusterConfig& config,
                             kernels::Backend backend,
                             ThreadPool* pool)
    : backend_(backend), pool_(pool) {
  const checkpoint::Checkpoint& tiny = TinyModel();
  auto placement = cluster::MakePlacement(config, tiny.config().expert_shape());
  EXPECT_TRUE(placement.ok()) << placement.status();
  placement_ = *std::move(placement);
  auto local =
      experts::LocalShards::Load(tiny, placement_, kCoordinator, nullptr);
  EXPECT_TRUE(local.ok()) << local.status();
  local_ = *std::move(local);
  for (int32_t i = 0; i < config.workers_size(); ++i) {
    stores_.push_back(
        std::make_unique<worker::ExpertStore>(worker::ExpertStore::Options{}));
    const absl::Status assigned = stores_.back()->Assign(
        AssignmentOf(placement_, WorkerId{i}), [](const auto&) {});
    EXPECT_TRUE(assigned.ok()) << assigned;
    sums_.push_back(std::make_unique<worker::HostShardSums>(backend, pool));
    runners_.push_back(std::make_unique<worker::ExpertRunner>(
        config.workers(i).name(), stores_.back().get(), sums_.back().get()));
  }
}

transport::FrameHandler MemoryCluster::handler(int32_t worker) const {
  worker::ExpertRunner* runner = runners_[static_cast<size_t>(worker)].get();
  return [runner](std::span<const std::byte> frame) {
    return runner->Handle(frame);
  };
}

experts::RemoteOptions MemoryCluster::remote_options() const {
  experts::RemoteOptions options;
  options.placement = placement_;
  options.shape = TinyModel().config().expert_shape();
  options.local = local_.get();
  options.generation = kGeneration;
  options.backend = backend_;
  options.pool = pool_;
  return options;
}

}  // namespace conclave::testing
