// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/ids.h"
#include "common/weight_layout.h"

namespace conclave::checkpoint {

// A linear [rows, cols] as a checkpoint holds it: its own tensors, or rows
// [first_row, first_row + rows) of tensors in which several are stacked.
struct Linear {
  // Of the whole in memory; `rows` and `cols` are this linear's. GPTQ's codes,
  // which lie transposed in the file, become rows.
  WeightLayout layout;
  bool transposed = false;  // GPTQ: weight [cols / 8, rows], scales likewise
  int64_t first_row = 0;
  TensorView weight;
  std::optional<TensorView> scales;
  std::optional<TensorView> biases;
  std::optional<TensorView> zeros, order;  // GPTQ
  int32_t zero = 0;                        // GPTQ: what zeros must all be
};

// `module` is the name without prefix and ".weight", e.g. "lm_head",
// "layers.0.mlp.gate". NotFound names it.
absl::StatusOr<Linear> FindLinear(const Checkpoint& checkpoint,
                                  const std::string& module);

// gate, up: [intermediate, hidden]; down: [hidden, intermediate].
struct Expert {
  Linear gate, up, down;
};
// Fused, stacked by projection, or an expert's own tensors. `at` is the MoE
// block: "layers.0.mlp.".
absl::StatusOr<Expert> FindExpert(const Checkpoint& checkpoint,
                                  const std::string& at,
                                  ExpertId expert);

// Rows [row_begin, row_end), columns [col_begin, col_end).
struct Cut {
  int64_t row_begin = 0, row_end = 0;
  int64_t col_begin = 0, col_end = 0;
  int64_t rows() const { return row_end - row_begin; }
  int64_t cols() const { return col_end - col_begin; }
};

// How a part lies in memory. InvalidArgument where a group or block of scales
// would be cut: the message says which multiple is due. `stacked`: parts of
// several linears will follow one another, so that each begins a block.
absl::StatusOr<WeightLayout> LayoutOf(const Linear& linear,
                                      const Cut& cut,
                                      bool stacked);

// Memory for one part, sizes as the layout says.
struct WeightSpans {
  std::span<std::byte> data, scales, biases;
};

// Reads a part with pread. Scales and biases that are not finite, FP8 codes
// that are no numbers and unexpected zero points are InvalidArgument with the
// tensor's name.
absl::Status ReadPart(const Checkpoint& checkpoint,
                      const Linear& linear,
                      const Cut& cut,
                      const WeightLayout& layout,
                      const WeightSpans& out);

}  // namespace conclave::checkpoint
