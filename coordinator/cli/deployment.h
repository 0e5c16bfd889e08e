// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/checkpoint/checkpoint.h"
#include "common/clock.h"
#include "common/memory.h"
#include "common/metrics.h"
#include "common/thread_pool.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/cli/backend_choice.h"
#include "coordinator/cli/placing.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/experts/experts.h"
#include "coordinator/model/decoder.h"
#include "kernels/context.h"

namespace conclave::cli {

// Everything below the engine, assembled from one configuration: checkpoint,
// placement, compute threads, and either local experts or a cluster of workers
// with remote ones. Created once; torn down in the reverse order.
class Deployment {
 public:
  struct Options {
    kernels::Backend backend = kernels::Backend::kCpu;
    int32_t threads = 0;  // 0: the configuration's, then one per core
    Clock* clock = nullptr;
    Metrics* metrics = nullptr;
    bool show_progress = true;  // of loading, on standard error
    bool with_engine = false;   // its caches take memory, too
    std::function<MemoryState()> memory = MemoryNow;
    ListGpusFn gpus = kernels::ListCudaDevices;
  };

  // Opens the checkpoint, places the experts (placing.h), refuses what does not
  // fit before any weight is read, loads the coordinator's own and
  // begins to dial the workers, which it does not wait for. On a GPU
  // (Backend::kCuda, coordinator.gpu) nothing is loaded before MakeDecoder.
  static absl::StatusOr<std::unique_ptr<Deployment>> Create(
      const v1::ClusterConfig& config, const Options& options);
  ~Deployment();

  const checkpoint::Checkpoint& checkpoint() const;
  // Null on a GPU, whose decoder holds the experts or has them behind a link.
  experts::Experts* experts();
  ThreadPool* pool();
  kernels::Activations activations() const;
  // Sizes for the engine: by them experts were placed and memory checked.
  model::StateSizes caches() const;
  // The file's, with what depends on the backend.
  const v1::Limits& limits() const;
  // Of the decoder: one without workers.
  model::MicroBatchSettings micro_batches() const;
  // Over those caches; on a GPU it loads all weights. The deployment outlives
  // it.
  absl::StatusOr<std::unique_ptr<model::Decoder>> MakeDecoder();
  // "SIMD AVX2, 8 threads", "GPU 0 (NVIDIA H200)".
  std::string ComputesOn() const;
  // OK, or which worker is missing, with phase and last error.
  absl::Status Ready() const;
  // Waits for the workers and shows how far they are; Ready() at the end.
  absl::Status WaitReady(absl::Time deadline);
  // How experts were placed, then who holds what, a line each.
  std::string Describe() const;
  std::vector<cluster::WorkerState> Workers() const;

 private:
  struct Impl;
  explicit Deployment(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::cli
