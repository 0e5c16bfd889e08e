// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "common/thread_pool.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/experts/local_experts.h"
#include "coordinator/experts/local_shards.h"
#include "tests/testing/golden.h"
#include "tests/testing/model_runner.h"

namespace conclave::testing {

// The embedded model, or another, with all its experts in this process; on a
// GPU, or beside it.
struct SingleProcess {
  explicit SingleProcess(
      kernels::Backend backend,
      const v1::ClusterConfig& config = {},
      int32_t threads = 2,
      const checkpoint::Checkpoint& model = TinyModel(),
      kernels::Activations activations = kernels::Activations::kF32,
      int32_t gpu = 0,
      bool beside = false)
      : pool(threads) {
    const ExpertShape shape = model.config().expert_shape();
    auto placement = cluster::MakePlacement(config, shape);
    EXPECT_TRUE(placement.ok()) << placement.status();
    auto loaded =
        experts::LocalShards::Load(model, *placement, std::nullopt, nullptr);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    shards = *std::move(loaded);
    // Where experts are beside a GPU, the CPU computes them.
    const bool device = backend == kernels::Backend::kCuda;
    auto made =
        experts::LocalExperts::Create(*placement,
                                      shape,
                                      shards.get(),
                                      device ? kernels::Backend::kCpu : backend,
                                      &pool,
                                      activations);
    EXPECT_TRUE(made.ok()) << made.status();
    local = *std::move(made);
    runner =
        std::make_unique<ModelRunner>(model,
                                      device && !beside ? nullptr : local.get(),
                                      backend,
                                      &pool,
                                      activations,
                                      gpu);
  }

  ThreadPool pool;
  std::unique_ptr<experts::LocalShards> shards;
  std::unique_ptr<experts::LocalExperts> local;
  std::unique_ptr<ModelRunner> runner;
};

}  // namespace conclave::testing
