// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/transport/memory_transport.h"
#include "coordinator/experts/remote_experts.h"
#include "tests/testing/form.h"
#include "tests/testing/golden.h"
#include "tests/testing/memory_cluster.h"
#include "tests/testing/model_runner.h"
#include "tests/testing/simulated_clock.h"

namespace conclave::parity {

// The embedded model with its experts behind a MemoryTransport.
struct Remote {
  Remote(const v1::ClusterConfig& config,
         testing::Form form,
         DType rows = DType::kF32,
         const std::vector<bool>& routed_here = {},
         const model::MicroBatchSettings& micro_batches = {})
      : pool(2), cluster(config, OfExperts(form), &pool) {
    for (int32_t i = 0; i < cluster.workers(); ++i) {
      transport.AddWorker(
          WorkerId{i}, config.workers(i).name(), cluster.handler(i));
    }
    experts::RemoteOptions options = cluster.remote_options();
    options.transport = &transport;
    options.clock = &clock;
    options.row_dtype = rows;
    options.reply_dtype = rows;
    auto made = experts::RemoteExperts::Create(std::move(options));
    EXPECT_TRUE(made.ok()) << made.status();
    experts = *std::move(made);
    runner = std::make_unique<testing::ModelRunner>(testing::TinyModel(),
                                                    experts.get(),
                                                    form.backend,
                                                    &pool,
                                                    kernels::Activations::kF32,
                                                    form.gpu,
                                                    routed_here,
                                                    kernels::GdnDType::kF32,
                                                    micro_batches);
  }

  // Workers beside a coordinator on a GPU compute on the CPU here.
  static kernels::Backend OfExperts(testing::Form form) {
    return form.backend == kernels::Backend::kCuda ? kernels::Backend::kCpu
                                                   : form.backend;
  }

  ThreadPool pool;
  testing::SimulatedClock clock;
  transport::MemoryTransport transport;
  testing::MemoryCluster cluster;
  std::unique_ptr<experts::RemoteExperts> experts;
  std::unique_ptr<testing::ModelRunner> runner;
};

struct Topology {
  std::string name;
  std::vector<double> shares;
  bool columns = false;
  int32_t shards = 0;
  double coordinator_share = 0;

  v1::ClusterConfig config() const {
    v1::ClusterConfig out = testing::Workers(shares);
    out.mutable_placement()->set_split(columns ? "columns" : "experts");
    out.mutable_placement()->set_shards(shards);
    out.mutable_placement()->set_coordinator_share(coordinator_share);
    return out;
  }
};

inline const std::vector<Topology>& Topologies() {
  static const auto* const all = new std::vector<Topology>{
      {.name = "one_worker", .shares = {1}},
      {.name = "two_workers", .shares = {1, 1}},
      {.name = "three_uneven", .shares = {1, 2, 4}},
      {.name = "four_workers", .shares = {1, 1, 1, 1}},
      {.name = "two_columns", .shares = {1, 1}, .columns = true},
      {.name = "three_columns", .shares = {2, 1, 1}, .columns = true},
      {.name = "four_columns", .shares = {1, 1, 1, 1}, .columns = true},
      {.name = "with_coordinator", .shares = {1, 3}, .coordinator_share = 2},
      {.name = "columns_with_coordinator",
       .shares = {1, 1},
       .columns = true,
       .coordinator_share = 2},
      {.name = "seven_shards", .shares = {2, 1, 4}, .shards = 7},
  };
  return *all;
}

}  // namespace conclave::parity
