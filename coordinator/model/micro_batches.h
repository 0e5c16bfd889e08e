// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/metrics.h"
#include "kernels/step_batch.h"

namespace conclave::model {

// Whole sequences of a step, in its order: rows [row_begin, row_begin +
// batch.rows) of it.
struct MicroBatch {
  int32_t row_begin = 0;
  kernels::StepBatch batch;         // rows counted from row_begin
  std::span<const int32_t> tokens;  // [batch.rows]
};

// A step cut into consecutive micro-batches. Views into the step, which
// outlives it.
class MicroBatches {
 public:
  // `count`: 1, or 2 if the step has two sequences or more: cut where the
  // larger one has the fewest rows.
  MicroBatches(const kernels::StepBatch& step,
               std::span<const int32_t> tokens,
               int32_t count);
  MicroBatches(const MicroBatches&) = delete;
  MicroBatches& operator=(const MicroBatches&) = delete;

  std::span<const MicroBatch> all() const { return parts_; }

 private:
  std::vector<MicroBatch> parts_;
  std::vector<kernels::SequenceRows> sequences_;  // of the second one
};

// How many micro-batches a step of so many rows gets: as set, or by what both
// numbers were measured to take. Steps whose rows have the same power of two
// below them decide together. They try 1 and 2 in turn, kTries of each, and
// keep 2 if its median is at least kGain shorter; after kKept steps they try
// again. One thread.
class MicroBatchChoice {
 public:
  static constexpr int32_t kTries = 5;
  static constexpr int32_t kKept = 500;
  static constexpr double kGain = 0.03;

  // 1 or 2: always that many; 0: by measured gain.
  explicit MicroBatchChoice(int32_t fixed) : fixed_(fixed) {}

  // For a step of two sequences or more. 1 or 2.
  int32_t For(int32_t rows) const;
  // Tells what such a step took; failed ones and those of a single sequence
  // are not told.
  void Took(int32_t rows, int32_t micro_batches, absl::Duration step);

 private:
  // Of the steps with one power of two.
  struct Bucket {
    std::array<std::vector<absl::Duration>, limits::kMicroBatchesMax> tried;
    int32_t chosen = 0;  // 0: none yet
    int32_t kept = 0;    // steps since it was chosen
  };
  static bool Trying(const Bucket& bucket);

  int32_t fixed_;
  std::map<int32_t, Bucket> buckets_;  // by the power of two
};

// How a decoder whose experts are elsewhere cuts its steps.
struct MicroBatchSettings {
  int32_t count = 1;           // 1, 2, or 0: by measured gain
  Clock* clock = RealClock();  // what steps are measured by
  Metrics* metrics = nullptr;  // of steps by their number; may be null
};

// Stands around each step of one decoder: how many micro-batches, and what
// they took. One thread.
class MicroBatchSteps {
 public:
  explicit MicroBatchSteps(const MicroBatchSettings& settings);

  // For the step that begins. 1 where it is not to be cut: it has a single
  // sequence, or somebody watches whole layers.
  int32_t Begin(const kernels::StepBatch& step, bool may_cut);
  // The step that began last has succeeded.
  void End();

 private:
  MicroBatchChoice choice_;
  Clock* clock_;
  std::vector<Counter> steps_;  // by number less one; empty without metrics
  int32_t rows_ = 0;            // of the step; 0: it could not be cut
  int32_t count_ = 1;
  absl::Time begin_;
};

}  // namespace conclave::model
