// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/device_step_arrays.h"

#include <algorithm>
#include <bit>

#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::model {
namespace {

using kernels::DeviceStep;
using kernels::SequenceRows;
using kernels::StepBatch;
using Sizes = DeviceStepArrays::Sizes;

// Where each array begins, in numbers.
struct Places {
  explicit Places(const Sizes& s)
      : sequence_of(s.rows),
        position(sequence_of + s.rows),
        slot_out(position + s.rows),
        row_begin(slot_out + s.rows),
        slot_in(row_begin + s.sequences + 1),
        wanted(slot_in + s.sequences),
        kv_blocks(wanted + s.wanted),
        all(kv_blocks + static_cast<size_t>(s.sequences) * s.kv_stride) {}

  size_t sequence_of, position, slot_out, row_begin, slot_in, wanted, kv_blocks,
      all;
};

// Blocks that the longest sequence uses, up to a power of two.
int32_t KvStride(const StepBatch& batch) {
  int32_t blocks = 1;
  for (const SequenceRows& s : batch.sequences) {
    blocks = std::max(blocks,
                      (s.position + s.rows + limits::kKvBlockTokens - 1) /
                          limits::kKvBlockTokens);
  }
  return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(blocks)));
}

// Few sizes, none of which wastes more than a third.
int32_t Filled(int32_t rows) {
  constexpr int32_t kOneByOne = 8;
  if (rows <= kOneByOne) return rows;
  const auto power =
      static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  return rows <= power / 4 * 3 ? power / 4 * 3 : power;
}

}  // namespace

Sizes DeviceStepArrays::SizesOf(const StepBatch& batch, int32_t wanted) {
  Sizes out{.rows = batch.rows,
            .sequences = static_cast<int32_t>(batch.sequences.size()),
            .kv_stride = KvStride(batch),
            .rows_max = 1,
            .wanted = wanted};
  for (const SequenceRows& s : batch.sequences) {
    out.rows_max = std::max(out.rows_max, s.rows);
  }
  return out;
}

Sizes DeviceStepArrays::RecordedSizesOf(const StepBatch& batch) {
  const int32_t rows = Filled(batch.rows);
  return {.rows = rows,
          .sequences = rows,
          .kv_stride = KvStride(batch),
          .rows_max = 1,
          .wanted = rows};
}

absl::StatusOr<DeviceStepArrays> DeviceStepArrays::Create(
    kernels::DeviceQueue* queue, const Bounds& bounds) {
  // Filling up takes the next power of two at the most.
  const Sizes largest{.rows = 2 * bounds.rows,
                      .sequences = 2 * bounds.sequences,
                      .kv_stride = static_cast<int32_t>(
                          std::bit_ceil(static_cast<uint32_t>(bounds.blocks))),
                      .rows_max = 1,
                      .wanted = 2 * bounds.rows};
  DeviceStepArrays out;
  ASSIGN_OR_RETURN(
      out.memory_,
      queue->Allocate(Places(largest).all * sizeof(int32_t), "step arrays"));
  return out;
}

DeviceStepArrays::Step DeviceStepArrays::At(const Sizes& sizes) const {
  const Places at(sizes);
  const auto* base = memory_.as<int32_t>();
  return {.step = {.rows = sizes.rows,
                   .sequences = sizes.sequences,
                   .rows_max = sizes.rows_max,
                   .positions_max = sizes.kv_stride * limits::kKvBlockTokens,
                   .token = base,
                   .sequence_of = base + at.sequence_of,
                   .position = base + at.position,
                   .slot_out = base + at.slot_out,
                   .row_begin = base + at.row_begin,
                   .slot_in = base + at.slot_in,
                   .kv_blocks = base + at.kv_blocks,
                   .kv_stride = sizes.kv_stride},
          .wanted = base + at.wanted};
}

absl::Status DeviceStepArrays::Upload(kernels::DeviceQueue* queue,
                                      const Sizes& sizes,
                                      const StepBatch& batch,
                                      std::span<const int32_t> tokens,
                                      std::span<const int32_t> wanted,
                                      int32_t spare_block) {
  const Places at(sizes);
  host_.assign(at.all, 0);
  int32_t* out = host_.data();
  std::copy(tokens.begin(), tokens.end(), out);
  std::fill_n(out + at.slot_out, sizes.rows, -1);
  std::fill_n(out + at.slot_in, sizes.sequences, -1);
  int32_t sequence = 0;
  for (const SequenceRows& s : batch.sequences) {
    const size_t states = s.state_slots_out.size();
    for (int32_t r = 0; r < s.rows; ++r) {
      const int32_t row = s.row_begin + r;
      out[at.sequence_of + row] = sequence;
      out[at.position + row] = s.position + r;
      if (states > 1 || r == s.rows - 1) {
        out[at.slot_out + row] = s.state_slots_out[states > 1 ? r : 0];
      }
    }
    out[at.row_begin + sequence] = s.row_begin;
    out[at.slot_in + sequence] = s.state_slot_in;
    const size_t blocks = std::min<size_t>(s.kv_blocks.size(), sizes.kv_stride);
    std::copy_n(
        s.kv_blocks.begin(),
        blocks,
        out + at.kv_blocks + static_cast<size_t>(sequence) * sizes.kv_stride);
    ++sequence;
  }
  for (int32_t row = batch.rows; sequence < sizes.sequences;
       ++row, ++sequence) {
    out[at.sequence_of + row] = sequence;
    out[at.row_begin + sequence] = row;
    out[at.kv_blocks + static_cast<size_t>(sequence) * sizes.kv_stride] =
        spare_block;
  }
  out[at.row_begin + sizes.sequences] = sizes.rows;
  std::copy(wanted.begin(), wanted.end(), out + at.wanted);
  for (auto i = static_cast<int32_t>(wanted.size()); i < sizes.wanted; ++i) {
    out[at.wanted + i] = i;
  }
  return queue->Upload(
      host_.data(), at.all * sizeof(int32_t), memory_.as<void>());
}

}  // namespace conclave::model
