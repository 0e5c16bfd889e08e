// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/slices.h"
#include "common/thread_pool.h"
#include "common/transport/transport.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/experts/local_shards.h"
#include "coordinator/experts/remote_experts.h"
#include "kernels/context.h"
#include "worker/expert_runner.h"
#include "worker/expert_store.h"

namespace conclave::testing {

// Workers w0, w1, ... with these shares.
v1::ClusterConfig Workers(const std::vector<double>& shares);

// The workers of a configuration over the embedded model, in this process:
// real stores and runners, joined to a transport by the test.
class MemoryCluster {
 public:
  static constexpr uint64_t kGeneration = 7;

  MemoryCluster(const v1::ClusterConfig& config,
                kernels::Backend backend,
                ThreadPool* pool);

  const Placement& placement() const { return placement_; }
  int32_t workers() const { return static_cast<int32_t>(runners_.size()); }
  transport::FrameHandler handler(int32_t worker) const;
  // Everything but transport and clock is set.
  experts::RemoteOptions remote_options() const;

 private:
  Placement placement_;
  kernels::Backend backend_;
  ThreadPool* pool_;
  std::unique_ptr<experts::LocalShards> local_;  // the coordinator's own
  std::vector<std::unique_ptr<worker::ExpertStore>> stores_;
  std::vector<std::unique_ptr<worker::HostShardSums>> sums_;
  std::vector<std::unique_ptr<worker::ExpertRunner>> runners_;
};

}  // namespace conclave::testing
