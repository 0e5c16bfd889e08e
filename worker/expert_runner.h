// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "common/transport/wire.h"
#include "kernels/context.h"
#include "worker/expert_store.h"
#include "worker/shard_sums.h"

namespace conclave::worker {

// Answers request frames: per shard the partial sums of its rows; and probes,
// which need no weights. A pure function of the weights and the frame. Used by
// one thread.
class ExpertRunner {
 public:
  // `name` stands in every error. Store and sums outlive the runner.
  ExpertRunner(std::string name, const ExpertStore* store, ShardSums* sums);

  // The frame is aligned to 8. What is wrong with it is told by an error
  // frame.
  Buffer Handle(std::span<const std::byte> frame);

  // From any thread.
  uint64_t frames_served() const { return frames_.load(); }

 private:
  Buffer AnswerProbe(std::span<const std::byte> frame) const;
  absl::StatusOr<Buffer> Run(const transport::ExpertRequest& request);
  absl::Status RunShard(const Assignment& assignment,
                        const transport::ExpertRequest& request,
                        const transport::ShardEntries& entries,
                        std::span<const int32_t> rows,
                        Buffer* sum);

  const std::string name_;
  const ExpertStore* store_;
  ShardSums* sums_;
  kernels::Workspace workspace_;
  std::atomic<uint64_t> frames_{0};
};

}  // namespace conclave::worker
