// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/made_up_steps.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::cli {

absl::StatusOr<std::unique_ptr<MadeUpSteps>> MadeUpSteps::Create(
    const checkpoint::Checkpoint& checkpoint,
    experts::Experts* experts,
    ThreadPool* pool,
    const Options& options) {
  auto steps = std::unique_ptr<MadeUpSteps>(new MadeUpSteps);
  steps->vocab_ = checkpoint.config().vocab_size;
  steps->blocks_ =
      (options.tokens + limits::kKvBlockTokens - 1) / limits::kKvBlockTokens;
  ASSIGN_OR_RETURN(
      steps->decoder_,
      model::Decoder::Create(checkpoint,
                             experts,
                             options.backend,
                             pool,
                             {.kv_blocks = steps->blocks_ * options.sequences,
                              .state_slots = options.sequences},
                             options.activations,
                             {},
                             options.micro_batches));
  return steps;
}

absl::Status MadeUpSteps::Run(int32_t sequences,
                              int32_t rows,
                              int32_t position) {
  std::vector<std::vector<int32_t>> blocks(sequences);
  std::vector<int32_t> slots(sequences);
  std::vector<int32_t> cells;
  for (int32_t at = 0; rows > 1 && at < rows;) {
    at = std::min(rows, at + limits::kGdnCellRows);
    cells.push_back(at);
  }
  std::vector<kernels::SequenceRows> batch(sequences);
  std::vector<int32_t> tokens;
  std::vector<int32_t> wanted;
  for (int32_t s = 0; s < sequences; ++s) {
    blocks[s].resize(blocks_);
    std::iota(blocks[s].begin(), blocks[s].end(), s * blocks_);
    slots[s] = s;
    batch[s] = {.row_begin = s * rows,
                .rows = rows,
                .position = position,
                .cells = cells,
                .state_slot_in = position == 0 ? -1 : s,
                .state_slots_out = {&slots[s], 1},
                .kv_blocks = blocks[s]};
    for (int32_t r = 0; r < rows; ++r) {
      tokens.push_back((s * 131 + (position + r) * 17) % vocab_);
    }
    wanted.push_back((s + 1) * rows - 1);
  }
  return decoder_
      ->Run({.sequences = batch, .rows = sequences * rows},
            tokens,
            wanted,
            nullptr)
      .status();
}

}  // namespace conclave::cli
