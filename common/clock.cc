// SPDX-License-Identifier: Apache-2.0
#include "common/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace conclave {
namespace {

class SystemClock final : public Clock {
 public:
  absl::Time Now() override {
    const auto since = std::chrono::steady_clock::now() - start_steady_;
    return start_ + absl::FromChrono(since);
  }
  void SleepUntil(absl::Time deadline) override {
    absl::SleepFor(deadline - Now());
  }

 private:
  const absl::Time start_ = absl::Now();
  const std::chrono::steady_clock::time_point start_steady_ =
      std::chrono::steady_clock::now();
};

}  // namespace

Clock* RealClock() {
  static SystemClock* const clock = new SystemClock;
  return clock;
}

}  // namespace conclave
