// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>

#include "absl/time/time.h"
#include "common/metrics.h"

namespace conclave::experts {

// Where the time of an exchange goes: making and handing over frames, waiting
// for the last reply, and the bytes both ways. Counts nothing without Metrics.
class ExchangeMetrics {
 public:
  explicit ExchangeMetrics(Metrics* metrics);
  void Dispatched(absl::Duration took);
  void Waited(absl::Duration took);
  void Sent(size_t bytes);
  void Received(size_t bytes);

 private:
  std::optional<Histogram> dispatch_;
  std::optional<Histogram> wait_;
  std::optional<Counter> sent_;
  std::optional<Counter> received_;
};

}  // namespace conclave::experts
