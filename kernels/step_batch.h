// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace conclave::kernels {

// The rows of one step are the concatenated new tokens of its sequences. One
// SequenceRows per sequence; rows of different sequences never see each other.
struct SequenceRows {
  int32_t row_begin = 0;  // first row of this sequence in the step
  int32_t rows = 0;       // new tokens, >= 1
  int32_t position = 0;   // of the first of them, = tokens seen before

  // Decode (cells empty): the recurrent form, 1 to 8 rows. Prefill: ends of
  // the 64-token cells of chunked GDN, counted from row_begin, ascending, each
  // at most limits::kGdnCellRows after the one before, the last == rows. The
  // grid depends on positions and turn borders only, so that a result does
  // not depend on how a prompt was cut into steps.
  std::span<const int32_t> cells;

  // GDN and convolution state: read from one slot, write to another (or the
  // same). state_slot_in < 0: the state before the first token (all zeros).
  int32_t state_slot_in = -1;
  // One slot: the state after the last row. Or, for decode, one slot per row.
  std::span<const int32_t> state_slots_out;

  // KV blocks of this sequence in order; block i holds positions
  // [i * block_tokens, (i + 1) * block_tokens). Covers position + rows.
  std::span<const int32_t> kv_blocks;
};

struct StepBatch {
  std::span<const SequenceRows> sequences;  // ascending row_begin, no gaps
  int32_t rows = 0;                         // sum of their rows
};

}  // namespace conclave::kernels
