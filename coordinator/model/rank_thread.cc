// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/rank_thread.h"

#include <utility>

#include "common/check.h"

namespace conclave::model {

OwnedBatch::OwnedBatch(const kernels::StepBatch& batch,
                       std::span<const int32_t> tokens)
    : tokens_(tokens.begin(), tokens.end()), rows_(batch.rows) {
  constexpr size_t kSpans = 3;  // of a sequence
  numbers_.reserve(kSpans * batch.sequences.size());
  const auto keep = [this](std::span<const int32_t> from) {
    return std::span<const int32_t>(
        numbers_.emplace_back(from.begin(), from.end()));
  };
  for (const kernels::SequenceRows& s : batch.sequences) {
    kernels::SequenceRows& to = sequences_.emplace_back(s);
    to.cells = keep(s.cells);
    to.state_slots_out = keep(s.state_slots_out);
    to.kv_blocks = keep(s.kv_blocks);
  }
}

RankThread::RankThread() : thread_([this] { Loop(); }) {}

RankThread::~RankThread() {
  work_.Close();
  thread_.join();
}

void RankThread::Loop() {
  while (const std::optional<Work> work = work_.Pop(absl::InfiniteDuration())) {
    CONCLAVE_CHECK(ended_.Push((*work)()).ok());
  }
}

}  // namespace conclave::model
