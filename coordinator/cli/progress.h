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
  // One load; `begin` bytes of it were there when it began.
  struct Row {
    std::string name;
    uint64_t begin = 0;
    uint64_t done = 0;
    uint64_t total = 0;
    absl::Time start = absl::InfinitePast();
    absl::Time end = absl::InfinitePast();    // now, or of its last bytes
    absl::Time shown = absl::InfinitePast();  // as a log line
  };
  // Takes news of a load; true: they end it.
  static bool Note(uint64_t done, uint64_t total, absl::Time now, Row& row);
  void Draw() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Line(const Row& row) const;

  Clock* const clock_;
  const bool show_;
  const bool terminal_;
  absl::Mutex mutex_;
  std::vector<Row> rows_ ABSL_GUARDED_BY(mutex_);
  size_t drawn_ ABSL_GUARDED_BY(mutex_) = 0;  // lines on the screen
  absl::Time drawn_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace conclave::cli
