// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/step_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::model {
namespace {

using kernels::SequenceRows;

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("step: ", parts...));
}

bool AllWithin(std::span<const int32_t> values, int32_t bound) {
  return std::all_of(values.begin(), values.end(), [bound](int32_t value) {
    return value >= 0 && value < bound;
  });
}

bool CellsFit(const SequenceRows& sequence) {
  int32_t end = 0;
  for (const int32_t cell : sequence.cells) {
    if (cell <= end || cell - end > limits::kGdnCellRows) return false;
    end = cell;
  }
  return sequence.cells.empty() || end == sequence.rows;
}

absl::Status CheckSequence(size_t i,
                           const SequenceRows& sequence,
                           const StateSizes& sizes) {
  if (sequence.rows < 1 || sequence.position < 0) {
    return Bad("sequence ", i, " has no rows or a negative position");
  }
  if (!CellsFit(sequence)) {
    return Bad("sequence ", i, ": its cells do not cover its rows");
  }
  const size_t states = sequence.state_slots_out.size();
  if (states != 1 && states != static_cast<size_t>(sequence.rows)) {
    return Bad("sequence ", i, ": ", states, " state slots to write");
  }
  if (sequence.state_slot_in >= sizes.state_slots ||
      !AllWithin(sequence.state_slots_out, sizes.state_slots)) {
    return Bad("sequence ", i, ": a state slot does not exist");
  }
  const int64_t positions = int64_t{sequence.position} + sequence.rows;
  const int64_t covered =
      static_cast<int64_t>(sequence.kv_blocks.size()) * limits::kKvBlockTokens;
  if (covered < positions) {
    return Bad("sequence ", i, ": KV blocks end before position ", positions);
  }
  if (!AllWithin(sequence.kv_blocks, sizes.kv_blocks)) {
    return Bad("sequence ", i, ": a KV block does not exist");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckStep(const checkpoint::ModelConfig& config,
                       const StateSizes& sizes,
                       const kernels::StepBatch& batch,
                       std::span<const int32_t> tokens,
                       std::span<const int32_t> logit_rows) {
  if (batch.rows < 1 || batch.rows > limits::kStepRowsMax) {
    return Bad(batch.rows, " rows; 1 to ", limits::kStepRowsMax, " fit");
  }
  if (tokens.size() != static_cast<size_t>(batch.rows)) {
    return Bad(tokens.size(), " tokens for ", batch.rows, " rows");
  }
  if (!AllWithin(tokens, config.vocab_size)) {
    return Bad("a token is outside the vocabulary of ", config.vocab_size);
  }
  if (!AllWithin(logit_rows, batch.rows)) {
    return Bad("logits are wanted of a row that does not exist");
  }
  int32_t row = 0;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const SequenceRows& sequence = batch.sequences[i];
    if (sequence.row_begin != row) {
      return Bad("sequence ", i, " does not begin at row ", row);
    }
    RETURN_IF_ERROR(CheckSequence(i, sequence, sizes));
    if (sequence.rows > batch.rows - row) break;
    row += sequence.rows;
  }
  if (row != batch.rows) return Bad("the sequences do not fill the rows");
  return absl::OkStatus();
}

}  // namespace conclave::model
