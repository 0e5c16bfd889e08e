// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/micro_batches.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace conclave::model {
namespace {

using kernels::SequenceRows;
using kernels::StepBatch;

// Sequences of the first of two: the larger half is as small as can be.
size_t CutOf(const StepBatch& step) {
  size_t best = 1;
  int32_t best_rows = step.rows;
  for (size_t i = 1; i < step.sequences.size(); ++i) {
    const int32_t before = step.sequences[i].row_begin;
    const int32_t larger = std::max(before, step.rows - before);
    if (larger >= best_rows) continue;
    best = i;
    best_rows = larger;
  }
  return best;
}

absl::Duration Median(std::vector<absl::Duration> values) {
  const auto middle =
      values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int32_t PowerOf(int32_t rows) {
  return std::bit_width(static_cast<uint32_t>(rows));
}

}  // namespace

MicroBatches::MicroBatches(const StepBatch& step,
                           std::span<const int32_t> tokens,
                           int32_t count) {
  CONCLAVE_CHECK(count == 1 || count == limits::kMicroBatchesMax);
  if (count == 1) {
    parts_.push_back({.batch = step, .tokens = tokens});
    return;
  }
  CONCLAVE_CHECK(step.sequences.size() >= 2);
  const size_t cut = CutOf(step);
  const int32_t rows = step.sequences[cut].row_begin;
  const auto later = step.sequences.subspan(cut);
  sequences_.assign(later.begin(), later.end());
  for (SequenceRows& s : sequences_) s.row_begin -= rows;
  parts_.push_back(
      {.batch = {.sequences = step.sequences.first(cut), .rows = rows},
       .tokens = tokens.first(static_cast<size_t>(rows))});
  parts_.push_back(
      {.row_begin = rows,
       .batch = {.sequences = sequences_, .rows = step.rows - rows},
       .tokens = tokens.subspan(static_cast<size_t>(rows))});
}

bool MicroBatchChoice::Trying(const Bucket& bucket) {
  return bucket.chosen == 0 || bucket.kept >= kKept;
}

int32_t MicroBatchChoice::For(int32_t rows) const {
  if (fixed_ != 0) return fixed_;
  const auto found = buckets_.find(PowerOf(rows));
  if (found == buckets_.end()) return 1;
  const Bucket& bucket = found->second;
  if (!Trying(bucket)) return bucket.chosen;
  return bucket.tried[1].size() < bucket.tried[0].size() ? 2 : 1;
}

void MicroBatchChoice::Took(int32_t rows,
                            int32_t micro_batches,
                            absl::Duration step) {
  if (fixed_ != 0) return;
  CONCLAVE_CHECK(micro_batches >= 1 &&
                 micro_batches <= limits::kMicroBatchesMax);
  Bucket& bucket = buckets_[PowerOf(rows)];
  if (!Trying(bucket)) {
    ++bucket.kept;
    return;
  }
  auto& tried = bucket.tried[static_cast<size_t>(micro_batches - 1)];
  if (tried.size() < kTries) tried.push_back(step);
  auto& [one, two] = bucket.tried;
  if (one.size() < kTries || two.size() < kTries) return;
  bucket.chosen = Median(two) <= (1 - kGain) * Median(one) ? 2 : 1;
  bucket.kept = 0;
  one.clear();
  two.clear();
}

MicroBatchSteps::MicroBatchSteps(const MicroBatchSettings& settings)
    : choice_(settings.count), clock_(settings.clock) {
  if (settings.metrics == nullptr) return;
  for (int32_t count = 1; count <= limits::kMicroBatchesMax; ++count) {
    steps_.push_back(settings.metrics->AddCounter(
        "conclave_micro_batch_steps_total",
        "Steps with experts on workers, by how many micro-batches they had",
        {{"micro_batches", absl::StrCat(count)}}));
  }
}

int32_t MicroBatchSteps::Begin(const StepBatch& step, bool may_cut) {
  const bool cut = may_cut && step.sequences.size() >= 2;
  rows_ = cut ? step.rows : 0;
  count_ = cut ? choice_.For(step.rows) : 1;
  begin_ = clock_->Now();
  return count_;
}

void MicroBatchSteps::End() {
  if (rows_ > 0) choice_.Took(rows_, count_, clock_->Now() - begin_);
  if (!steps_.empty()) steps_[static_cast<size_t>(count_ - 1)].Add();
}

}  // namespace conclave::model
