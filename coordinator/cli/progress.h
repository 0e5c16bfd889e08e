// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace conclave::cli {

// Progress of loads on standard error: one bar per name with rate and time
// left on a terminal, a log line every few seconds elsewhere. Thread-safe.
class Progress {
 public:
  // `show` false: silent.
  Progress(Clock* clock, bool show);

  void Update(const std::string& name, uint64_t done, uint64_t total);

 private:
  struct Row {
    std::string name;
    uint64_t done = 0;
    uint64_t total = 0;
    absl::Time start;
    absl::Time end;
  };
  void Draw() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Line(const Row& row) const;

  Clock* const clock_;
  const bool show_;
  const bool terminal_;
  absl::Mutex mutex_;
  std::vector<Row> rows_ ABSL_GUARDED_BY(mutex_);
  size_t drawn_ ABSL_GUARDED_BY(mutex_) = 0;  // lines on the screen
  absl::Time last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave::cli
