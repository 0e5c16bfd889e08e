// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"

namespace conclave::experts {

// What the router decided for the rows of one layer and micro-batch. A view:
// the caller keeps the arrays alive until Finish returns.
struct Routing {
  int32_t rows = 0;
  int32_t top_k = 0;
  std::span<const int32_t> expert;  // [rows, top_k], distinct within a row
  std::span<const float> weight;    // [rows, top_k], a row sums to 1
  int32_t micro_batch = 0;          // of the step, below its number of them
};

// Names the work between Start and Finish.
struct Ticket {
  uint64_t id = 0;
};

// The seam between the decoder and whoever holds the experts: LocalExperts,
// RemoteExperts; PeerExperts comes with CUDA. Dispatch, expert FFN and combine
// lie behind it. Used by the engine thread only.
class Experts {
 public:
  virtual ~Experts() = default;

  // Called once before the layers of a step of 1 to
  // limits::kMicroBatchesMax micro-batches, whole sequences each. What was
  // started before is forgotten.
  virtual void BeginStep(int32_t micro_batches) = 0;

  // Sends the rows on their way; x is [routing.rows, hidden], alive until
  // Finish. The caller computes the shared expert before Finish. Each
  // micro-batch has one ticket at the most at a time; FailedPrecondition: it
  // has one, or the step has no such micro-batch.
  virtual absl::StatusOr<Ticket> Start(LayerId layer,
                                       std::span<const float> x,
                                       const Routing& routing) = 0;

  // out[r] = sum over shards, in shard order, of the shard's partial sum of
  // row r; [rows, hidden], overwritten. Tickets may be finished in any order.
  // Unavailable or DeadlineExceeded name the worker and the phase; then the
  // whole step has failed, no ticket is open, and `out` means nothing.
  virtual absl::Status Finish(Ticket ticket, std::span<float> out) = 0;
};

}  // namespace conclave::experts
