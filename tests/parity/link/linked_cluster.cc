// SPDX-License-Identifier: Apache-2.0
#include "tests/parity/link/linked_cluster.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/config/cluster_config.h"
#include "coordinator/cli/linked.h"
#include "coordinator/cli/placing.h"
#include "coordinator/cluster/placement.h"
#include "kernels/device.h"
#include "tests/gpu/worker_world.h"

namespace conclave::testing {

LinkedCluster::LinkedCluster(const Setting& setting) : setting_(setting) {
  config_ = config::DefaultClusterConfig();
  config_.set_model(TinyModel().folder());
  config_.mutable_exchange()->set_over(setting.over_grpc ? "grpc" : "nccl");
  config_.mutable_coordinator()->set_activations(setting.activations);
  activations_ = *kernels::ParseActivations(setting.activations);
  config_.mutable_placement()->set_split(setting.columns ? "columns"
                                                         : "experts");
  config_.mutable_placement()->set_shards(setting.shards);
  workers.resize(setting.shares.size());
  for (size_t i = 0; i < workers.size(); ++i) {
    v1::Worker* worker = config_.add_workers();
    worker->set_name(absl::StrCat("w", i));
    worker->set_share(setting.shares[i]);
    StartWorker(i, 0);
    ports_.push_back(workers[i]->port());
    worker->set_address(absl::StrCat("127.0.0.1:", ports_[i]));
  }
  if (!setting.own.empty()) StateLayers();
  placement_ = *cluster::MakePlacement(config_, shape_);
  if (!setting.own.empty()) {
    routed_here_ = cli::OwnLayers(placement_, shape_.layers);
  }
}

void LinkedCluster::StateLayers() {
  auto* placement = config_.mutable_placement();
  const auto count = config_.workers_size();
  for (int32_t holder = -1; holder < count; ++holder) {
    v1::ShardPlacement* shard = placement->add_explicit_();
    shard->set_holder(holder < 0 ? "coordinator"
                                 : config_.workers(holder).name());
    for (int32_t layer = 0; layer < shape_.layers; ++layer) {
      const bool here =
          std::count(setting_.own.begin(), setting_.own.end(), layer) > 0;
      if (here != (holder < 0)) continue;
      v1::SliceRange* range = shard->add_slices();
      range->set_layer_begin(layer);
      range->set_layer_end(layer + 1);
      if (here) continue;
      range->set_expert_begin(shape_.experts * holder / count);
      range->set_expert_end(shape_.experts * (holder + 1) / count);
    }
  }
}

void LinkedCluster::StartWorker(size_t index, int port, bool gpu) {
  worker::WorkerOptions options;
  options.name = absl::StrCat("w", index);
  options.address = absl::StrCat("127.0.0.1:", port);
  options.threads = 1;
  options.spin_us = 0;
  auto started = worker::Worker::Start(
      options, gpu ? worker::NewDevice(kernels::kHostDevice) : nullptr);
  ASSERT_TRUE(started.ok()) << started.status();
  workers[index] = *std::move(started);
}

void LinkedCluster::StartCluster() {
  supply = std::make_unique<delivery::Supply>(
      &TinyModel(),
      delivery::Supply::Options{.cache = "", .clock = RealClock()});
  cluster::ClusterParts parts;
  parts.config = config_;
  parts.placement = placement_;
  parts.config_sha256 = TinyModel().config().config_sha256;
  parts.supply = supply.get();
  parts.clock = RealClock();
  auto made = cluster::Cluster::Start(std::move(parts));
  ASSERT_TRUE(made.ok()) << made.status();
  cluster = *std::move(made);
}

absl::Status LinkedCluster::WaitReady() {
  return cluster->WaitReady(RealClock()->Now() + absl::Seconds(60),
                            [](const auto&) {});
}

void LinkedCluster::Replace(size_t index) {
  workers[index] = nullptr;
  const WorkerId id{static_cast<int32_t>(index)};
  while (cluster->Look(id).phase == cluster::Phase::kReady) {
    std::this_thread::yield();
  }
  StartWorker(index, ports_[index]);
  const absl::Status ready = WaitReady();
  ASSERT_TRUE(ready.ok()) << ready;
}

experts::LinkedOptions LinkedCluster::Options() {
  experts::LinkedOptions out = cli::LinkedOptionsOf(config_,
                                                    placement_,
                                                    TinyModel().config(),
                                                    routed_here_,
                                                    ModelRunner::Sizes(),
                                                    activations_);
  cli::UseCluster(cluster.get(), &out);
  out.clock = RealClock();
  return out;
}

void LinkedCluster::MakeRunner(experts::LinkedOptions options) {
  auto made = experts::LinkedExperts::Create(std::move(options));
  ASSERT_TRUE(made.ok()) << made.status();
  linked = *std::move(made);
  MakeDecoder(nullptr, linked.get());
}

void LinkedCluster::MakeRemote() {
  auto loaded =
      experts::LocalShards::Load(TinyModel(),
                                 cli::WithoutLayers(placement_, routed_here_),
                                 kCoordinator,
                                 nullptr);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  own = *std::move(loaded);
  const bool exact = activations_ == kernels::Activations::kF32;
  auto made = experts::RemoteExperts::Create(
      {.placement = placement_,
       .shape = shape_,
       .local = own.get(),
       .transport = cluster->transport(),
       .clock = RealClock(),
       .generation = cluster->generation(),
       .row_dtype = exact ? DType::kF32 : DType::kBF16});
  ASSERT_TRUE(made.ok()) << made.status();
  remote = *std::move(made);
  MakeDecoder(remote.get(), nullptr);
}

void LinkedCluster::MakeDecoder(experts::Experts* experts,
                                experts::LinkedExperts* linked_experts) {
  model::DevicePlace place;
  place.gpu = kernels::kHostDevice;
  place.linked = linked_experts;
  place.routed_here = routed_here_;
  auto decoder = model::Decoder::Create(TinyModel(),
                                        experts,
                                        kernels::Backend::kCuda,
                                        nullptr,
                                        ModelRunner::Sizes(),
                                        activations_,
                                        place);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  runner = std::make_unique<ModelRunner>(*std::move(decoder),
                                         TinyModel().config().vocab_size);
}

void LinkedCluster::Up() {
  ASSERT_NO_FATAL_FAILURE(StartCluster());
  const absl::Status ready = WaitReady();
  ASSERT_TRUE(ready.ok()) << ready;
  if (setting_.over_grpc) return MakeRemote();
  MakeRunner(Options());
}

}  // namespace conclave::testing
