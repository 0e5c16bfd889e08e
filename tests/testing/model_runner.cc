// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/model_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::testing {
namespace {

// Ends of the cells of rows [0, rows) at `position`, on the 64-token grid.
std::vector<int32_t> Cells(int32_t position, int32_t rows) {
  std::vector<int32_t> out;
  const int32_t grid = limits::kGdnCellRows;
  for (int32_t end = grid - position % grid; end < rows; end += grid) {
    out.push_back(end);
  }
  out.push_back(rows);
  return out;
}

}  // namespace

ModelRunner::ModelRunner(const checkpoint::Checkpoint& checkpoint,
                         experts::Experts* experts,
                         kernels::Backend backend,
                         ThreadPool* pool,
                         kernels::Activations activations,
                         int32_t gpu,
                         const std::vector<bool>& routed_here,
                         kernels::GdnDType gdn,
                         const model::MicroBatchSettings& micro_batches)
    : vocab_(checkpoint.config().vocab_size) {
  auto decoder = model::Decoder::Create(
      checkpoint,
      experts,
      backend,
      pool,
      Sizes(),
      activations,
      {.gpu = gpu, .gdn = gdn, .progress = nullptr, .routed_here = routed_here},
      micro_batches);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  if (decoder.ok()) decoder_ = *std::move(decoder);
}

ModelRunner::Sequence ModelRunner::Open(int32_t index) const {
  Sequence out{.position = 0, .slot = kSequences - 1 - index, .blocks = {}};
  for (int32_t i = 0; i < kBlocks; ++i) {
    out.blocks.push_back((kBlocks - 1 - i) * kSequences + index);
  }
  return out;
}

absl::StatusOr<std::vector<std::vector<float>>> ModelRunner::Step(
    std::vector<Feed> feeds, model::Probe* probe) {
  std::vector<kernels::SequenceRows> sequences;
  std::vector<std::vector<int32_t>> cells(feeds.size());
  std::vector<int32_t> tokens, wanted;
  for (size_t i = 0; i < feeds.size(); ++i) {
    const Feed& feed = feeds[i];
    const auto rows = static_cast<int32_t>(feed.tokens.size());
    const auto begin = static_cast<int32_t>(tokens.size());
    if (feed.prefill) cells[i] = Cells(feed.sequence->position, rows);
    sequences.push_back(
        {.row_begin = begin,
         .rows = rows,
         .position = feed.sequence->position,
         .cells = cells[i],
         .state_slot_in =
             feed.sequence->position == 0 ? -1 : feed.sequence->slot,
         .state_slots_out = std::span<const int32_t>(&feed.sequence->slot, 1),
         .kv_blocks = feed.sequence->blocks});
    tokens.insert(tokens.end(), feed.tokens.begin(), feed.tokens.end());
    for (int32_t r = feed.logits_from; r < rows; ++r) {
      wanted.push_back(begin + r);
    }
  }
  const kernels::StepBatch batch{sequences,
                                 static_cast<int32_t>(tokens.size())};
  ASSIGN_OR_RETURN(const model::StepOutput output,
                   decoder_->Run(batch, tokens, wanted, probe));
  hidden_.assign(output.hidden.begin(), output.hidden.end());
  std::vector<std::vector<float>> out;
  size_t at = 0;
  for (const Feed& feed : feeds) {
    feed.sequence->position += static_cast<int32_t>(feed.tokens.size());
    const size_t size = (feed.tokens.size() - feed.logits_from) * vocab_;
    out.emplace_back(output.logits.begin() + at,
                     output.logits.begin() + at + size);
    at += size;
  }
  return out;
}

absl::StatusOr<std::vector<float>> ModelRunner::Prefill(
    Sequence* sequence, const std::vector<int32_t>& ids, int32_t chunk) {
  std::vector<float> last;
  for (size_t begin = 0; begin < ids.size(); begin += chunk) {
    const size_t end = std::min(ids.size(), begin + chunk);
    ASSIGN_OR_RETURN(
        auto logits,
        Step({{.sequence = sequence,
               .tokens = {ids.begin() + begin, ids.begin() + end},
               .prefill = true,
               .logits_from = static_cast<int32_t>(end - begin) - 1}}));
    last = std::move(logits[0]);
  }
  return last;
}

absl::StatusOr<std::vector<int32_t>> ModelRunner::Greedy(
    const std::vector<int32_t>& ids, int32_t count) {
  Sequence sequence = Open(0);
  ASSIGN_OR_RETURN(std::vector<float> logits, Prefill(&sequence, ids));
  std::vector<int32_t> out;
  while (true) {
    out.push_back(ArgMax(logits));
    if (static_cast<int32_t>(out.size()) >= count) return out;
    ASSIGN_OR_RETURN(auto step,
                     Step({{.sequence = &sequence, .tokens = {out.back()}}}));
    logits = std::move(step[0]);
  }
}

int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                              logits.begin());
}

}  // namespace conclave::testing
