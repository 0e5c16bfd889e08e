// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "conclave/v1/config.pb.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/delivery/supply.h"
#include "coordinator/experts/linked_experts.h"
#include "coordinator/experts/local_shards.h"
#include "coordinator/experts/remote_experts.h"
#include "tests/testing/golden.h"
#include "tests/testing/model_runner.h"
#include "worker/worker.h"

namespace conclave::testing {

// Workers over the embedded model in this process, each with a device of its
// own, behind the control plane of production; a coordinator with another one.
// Devices are the plain twins. What goes wrong fails the calling test.
class LinkedCluster {
 public:
  struct Setting {
    std::string name;
    std::vector<double> shares = {1, 1};
    bool columns = false;
    int32_t shards = 0;
    std::string activations = "f32";
    bool over_grpc = false;
    std::vector<int32_t> own = {};  // layers of the coordinator, whole
    friend void PrintTo(const Setting& setting, std::ostream* out) {
      *out << setting.name;
    }
  };

  // Starts the workers.
  explicit LinkedCluster(const Setting& setting);

  // Also anew, after the worker was destroyed. gpu: with a device.
  void StartWorker(size_t index, int port, bool gpu = true);
  void StartCluster();
  absl::Status WaitReady();
  // Destroys the worker and starts another one in its place, when membership
  // has missed it.
  void Replace(size_t index);
  // For LinkedExperts over this cluster.
  experts::LinkedOptions Options();
  void MakeRunner(experts::LinkedOptions options);
  // All of it, as the setting says.
  void Up();

 private:
  // The coordinator's layers, and of the others the experts to the workers in
  // turn.
  void StateLayers();
  void MakeRemote();
  void MakeDecoder(experts::Experts* experts, experts::LinkedExperts* linked);

  const Setting setting_;
  const ExpertShape shape_ = TinyModel().config().expert_shape();
  v1::ClusterConfig config_;
  Placement placement_;
  std::vector<int> ports_;  // of the workers
  std::vector<bool> routed_here_;
  kernels::Activations activations_ = kernels::Activations::kF32;

 public:
  // Each needs those before it.
  std::vector<std::unique_ptr<worker::Worker>> workers;
  std::unique_ptr<delivery::Supply> supply;
  std::unique_ptr<cluster::Cluster> cluster;
  std::unique_ptr<experts::LocalShards> own;
  std::unique_ptr<experts::RemoteExperts> remote;
  std::unique_ptr<experts::LinkedExperts> linked;
  std::unique_ptr<ModelRunner> runner;
};

}  // namespace conclave::testing
