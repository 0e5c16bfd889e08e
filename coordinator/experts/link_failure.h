// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "coordinator/experts/link_layers.h"

namespace conclave::experts {

// A worker as membership saw it last, and its end of the link.
struct LinkPeer {
  absl::Status gone;    // why it has to be brought up anew
  bool silent = false;  // does not answer, its connections still stand
  uint64_t link = 0;
  uint64_t step = 0;
  int32_t layers = 0;  // of the step: sums of so many were sent
  std::string error;   // why its end is broken
};

// How a step over a link failed.
struct LinkFailure {
  absl::Status status;           // what the link said
  std::optional<WorkerId> lost;  // who is to blame, where that is known
  uint64_t link = 0;             // its number
  uint64_t step = 0;
  int64_t passed = 0;  // exchanges of the step
  absl::Duration deadline;
};

// Unavailable, with worker, layer and what happened there. Of a deadline,
// where nobody is known to blame: the silent ones, else who came least far.
absl::Status NameFailure(const LinkFailure& failure,
                         const LinkLayers& layers,
                         const std::function<LinkPeer(WorkerId)>& look,
                         const std::function<std::string(WorkerId)>& name);

}  // namespace conclave::experts
