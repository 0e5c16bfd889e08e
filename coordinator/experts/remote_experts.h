// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/dtype.h"
#include "common/metrics.h"
#include "common/transport/transport.h"
#include "coordinator/experts/experts.h"
#include "coordinator/experts/local_shards.h"
#include "kernels/context.h"

namespace conclave::experts {

// What RemoteExperts needs; the caller keeps everything alive.
struct RemoteOptions {
  Placement placement;
  ExpertShape shape;
  // The coordinator's own shards; may be null when it holds none.
  const LocalShards* local = nullptr;
  transport::Transport* transport = nullptr;
  Clock* clock = nullptr;
  Metrics* metrics = nullptr;  // may be null
  uint64_t generation = 0;     // of this life of the coordinator, not 0
  absl::Duration deadline = absl::Seconds(5);  // from Start to the last reply
  DType row_dtype = DType::kF32;               // of rows sent: kF32 or kBF16
  DType reply_dtype = DType::kF32;             // of partial sums asked for
  kernels::Backend backend = kernels::Backend::kCpu;
  ThreadPool* pool = nullptr;
  // Of the coordinator's own shards; workers are told by their assignment.
  kernels::Activations activations = kernels::Activations::kF32;
};

// Shards on workers, one frame each way per layer and worker with work; the
// coordinator's own shards are computed while the frames travel. A failure
// names worker and phase ("exchange, layer 3"), after which the next step may
// begin at once: answers that come late carry an old tag and are dropped. Each
// micro-batch has a step number of its own and so tags of its own; an answer
// to one that comes while another is waited for is kept.
class RemoteExperts final : public Experts {
 public:
  static absl::StatusOr<std::unique_ptr<RemoteExperts>> Create(
      RemoteOptions options);
  ~RemoteExperts() override;

  void BeginStep(int32_t micro_batches) override;
  absl::StatusOr<Ticket> Start(LayerId layer,
                               std::span<const float> x,
                               const Routing& routing) override;
  absl::Status Finish(Ticket ticket, std::span<float> out) override;

 private:
  struct Impl;
  explicit RemoteExperts(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::experts
