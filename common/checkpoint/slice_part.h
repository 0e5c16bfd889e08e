// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/linear.h"
#include "common/slices.h"
#include "common/weight_layout.h"

namespace conclave::checkpoint {

// How the three projections of one slice lie in memory: gate and up are
// [width, hidden], down is [hidden, width].
struct SliceLayout {
  WeightLayout gate, up, down;

  uint64_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
  friend bool operator==(const SliceLayout&, const SliceLayout&) = default;
};

// Memory of one slice; sizes as its layout says.
struct SliceSpans {
  WeightSpans gate, up, down;
};

// InvalidArgument: the slice is not part of the model, or cannot be cut there.
absl::StatusOr<SliceLayout> LayoutOfSlice(const Checkpoint& checkpoint,
                                          const Slice& slice);

// Reads a slice with pread. Errors are those of ReadPart, and InvalidArgument
// with the tensor's name where it is not stored as `layout` says.
absl::Status ReadSlice(const Checkpoint& checkpoint,
                       const Slice& slice,
                       const SliceLayout& layout,
                       const SliceSpans& out);

}  // namespace conclave::checkpoint
