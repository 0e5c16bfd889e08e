// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "common/dtype.h"
#include "common/transport/wire.h"
#include "coordinator/experts/plan.h"

namespace conclave::experts {

// What a frame from a worker turned out to be.
enum class FrameMeaning : uint8_t {
  kAnswer,  // to the request; `reply` is set
  kStale,   // to an older one, to be dropped
};

// What must come back for a part.
struct Expected {
  transport::FrameTag tag;
  const HolderPart* part = nullptr;
  int32_t hidden = 0;
  DType dtype = DType::kF32;
};

// Reads a worker's frame. Everything that is neither a right answer nor stale
// is an error that says what is wrong: an error reply, garbage, other rows,
// shards or sizes than asked for. `reply` points into `frame`.
absl::StatusOr<FrameMeaning> ReadReply(std::span<const std::byte> frame,
                                       const Expected& expected,
                                       transport::ExpertReply* reply);

}  // namespace conclave::experts
