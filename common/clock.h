// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/time/time.h"

namespace conclave {

// Where time comes from. Production passes RealClock(), tests a simulated one
// (tests/testing/simulated_clock.h); no other file reads the time. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Never goes back within one process.
  virtual absl::Time Now() = 0;
  // Returns when Now() >= deadline.
  virtual void SleepUntil(absl::Time deadline) = 0;
};

// Lives for ever.
Clock* RealClock();

}  // namespace conclave
