// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>

#include "common/clock.h"

namespace conclave::testing {

// Time that moves only when told to, or when somebody sleeps. Thread-safe.
class SimulatedClock final : public Clock {
 public:
  absl::Time Now() override {
    return absl::UnixEpoch() + absl::Nanoseconds(now_ns_.load());
  }
  void SleepUntil(absl::Time deadline) override {
    const int64_t to = absl::ToInt64Nanoseconds(deadline - absl::UnixEpoch());
    int64_t now = now_ns_.load();
    while (now < to && !now_ns_.compare_exchange_weak(now, to)) {
    }
  }
  void Advance(absl::Duration by) {
    now_ns_.fetch_add(absl::ToInt64Nanoseconds(by));
  }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000'000};
};

}  // namespace conclave::testing
