// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/bounded_queue.h"
#include "kernels/step_batch.h"

namespace conclave::model {

// A step's numbers in memory of their own: whoever asked for the step may be
// gone when the last rank ends it.
class OwnedBatch {
 public:
  OwnedBatch(const kernels::StepBatch& batch, std::span<const int32_t> tokens);
  OwnedBatch(const OwnedBatch&) = delete;
  OwnedBatch& operator=(const OwnedBatch&) = delete;

  kernels::StepBatch batch() const { return {sequences_, rows_}; }
  std::span<const int32_t> tokens() const { return tokens_; }

 private:
  std::vector<std::vector<int32_t>> numbers_;
  std::vector<kernels::SequenceRows> sequences_;
  std::vector<int32_t> tokens_;
  int32_t rows_;
};

// Does one rank's steps, one at a time, in a thread of its own.
class RankThread {
 public:
  using Work = std::function<absl::Status()>;
  RankThread();
  ~RankThread();  // waits for a step under way
  RankThread(const RankThread&) = delete;
  RankThread& operator=(const RankThread&) = delete;

  absl::Status Begin(Work work) { return work_.Push(std::move(work)); }
  // What the step begun last gave; nullopt: it goes on after that time.
  std::optional<absl::Status> End(absl::Duration within) {
    return ended_.Pop(within);
  }

 private:
  void Loop();
  // One step is under way at a time.
  BoundedQueue<Work> work_{1};
  BoundedQueue<absl::Status> ended_{1};
  std::thread thread_;
};

}  // namespace conclave::model
