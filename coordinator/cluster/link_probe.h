// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/transport/transport.h"
#include "common/transport/wire.h"

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

  // Sends a probe of so many bytes to each, for so many back; then waits for
  // the answers of all. In turn.
  absl::Status Start(const std::vector<WorkerId>& workers,
                     uint64_t out,
                     uint64_t back);
  absl::Status Finish();

 private:
  absl::StatusOr<double> RoundTrip(const std::vector<WorkerId>& workers);
  absl::StatusOr<double> Once(const std::vector<WorkerId>& workers,
                              uint64_t out,
                              uint64_t back);
  absl::StatusOr<double> Rate(const std::vector<WorkerId>& workers,
                              double round_trip_s,
                              bool is_out);

  transport::Transport* const transport_;
  Clock* const clock_;
  const absl::Duration deadline_;
  // Of the probes that are out.
  transport::FrameTag tag_;
  uint64_t back_ = 0;
  std::set<WorkerId> open_;
  absl::Time until_;
};

}  // namespace conclave::cluster
