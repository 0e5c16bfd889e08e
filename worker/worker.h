// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/shard_weights.h"
#include "conclave/v1/config.pb.h"
#include "kernels/context.h"
#include "worker/expert_device.h"

namespace conclave::worker {

struct WorkerOptions {
  std::string name;      // empty: takes any name that a coordinator gives it
  std::string address;   // HOST:PORT; port 0 picks a free one
  std::string model;     // checkpoint folder; empty: as below; "off": none
  std::string hint;      // folder of a checkpoint that may be here, else the
                         // coordinator's path, else slices are fetched
  int32_t threads = 0;   // 0: one per core
  int32_t spin_us = 50;  // 0 or less: never spin
  kernels::Backend backend = kernels::Backend::kCpu;
  int32_t gpu = 0;            // kCuda: which one
  std::string gpu_name = {};  // kCuda: "GPU 0 (NVIDIA H200)"
  v1::Tls tls;
  checkpoint::LoadProgressFn progress;  // for the operator; may be null
  std::string cache;                    // folder of fetched slices; empty: none
  uint64_t cache_bytes = 0;  // what the cache may keep; 0: everything
};

// A worker that listens: control plane and exchange on one port.
class Worker {
 public:
  // Unavailable: the address cannot be bound. Errors of the cache's folder, and
  // of a GPU that cannot be used.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(WorkerOptions options);
  // With experts on that device, null: the CPU, whatever the options say.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(
      WorkerOptions options, std::unique_ptr<ExpertDevice> device);
  // Ends all calls, a load too.
  ~Worker();

  int port() const;

  // Unavailable, for good: its GPU is lost; names both. Every frame is answered
  // with that error. From any thread.
  absl::Status Health() const;

 private:
  struct Impl;
  explicit Worker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::worker
