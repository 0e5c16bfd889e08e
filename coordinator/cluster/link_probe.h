// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/transport/transport.h"

namespace conclave::cluster {

struct LinkSpeed {
  double round_trip_s = 0;  // of frames without payload, median
  double out_bytes_per_s = 0;
  double back_bytes_per_s = 0;
};

// Measures with probe frames (docs/contracts/wire.md) on the transport that
// serves experts, one frame at a time to each peer; the path, the code and the
// polling are those of a decode step. The thread that calls is the only one to
// use the transport meanwhile.
class LinkProbe {
 public:
  // `deadline` is how long one frame may take. Both outlive the probe.
  LinkProbe(transport::Transport* transport,
            Clock* clock,
            absl::Duration deadline);

  // A second or so; more on slow links. Unavailable and DeadlineExceeded name
  // the peer.
  absl::StatusOr<LinkSpeed> Measure(WorkerId worker);

  // All at once: the rates are those of all links together, the round trip
  // that of one small frame to each.
  absl::StatusOr<LinkSpeed> MeasureAll(const std::vector<WorkerId>& workers);

  // Median seconds until each has had `out` bytes and sent `back`.
  absl::StatusOr<double> Round(const std::vector<WorkerId>& workers,
                               uint64_t out,
                               uint64_t back);

 private:
  absl::StatusOr<double> Once(const std::vector<WorkerId>& workers,
                              uint64_t out,
                              uint64_t back);
  absl::StatusOr<double> Rate(const std::vector<WorkerId>& workers,
                              double round_trip_s,
                              bool is_out);

  transport::Transport* const transport_;
  Clock* const clock_;
  const absl::Duration deadline_;
  uint64_t step_ = 0;
};

}  // namespace conclave::cluster
