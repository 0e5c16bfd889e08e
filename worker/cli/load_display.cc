// SPDX-License-Identifier: Apache-2.0
#include "worker/cli/load_display.h"

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace conclave::worker {
namespace {

constexpr int kBarCells = 30;
constexpr double kMib = 1 << 20;

class Display {
 public:
  void Show(uint64_t done, uint64_t total) {
    const absl::Time now = RealClock()->Now();
    if (done < last_done_ || begin_ == absl::InfinitePast()) {
      begin_ = now;
      begin_done_ = done;
    }
    last_done_ = done;
    const bool end = done >= total;
    if (!end && now - shown_ < interval_) return;
    shown_ = now;
    const double seconds = absl::ToDoubleSeconds(now - begin_);
    const double rate =  // bytes a second
        seconds > 0 ? static_cast<double>(done - begin_done_) / seconds : 0;
    const std::string left =
        end || rate <= 0
            ? ""
            : absl::StrFormat(" %.0f s left",
                              static_cast<double>(total - done) / rate);
    const double part =
        total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
    const std::string bar(static_cast<size_t>(part * kBarCells), '#');
    std::fprintf(stderr,
                 "%sloading experts [%-*s] %3.0f %% %.0f MiB %.0f MiB/s%s%s",
                 tty_ ? "\r" : "",
                 kBarCells,
                 bar.c_str(),
                 part * 100,
                 static_cast<double>(done) / kMib,
                 rate / kMib,
                 left.c_str(),
                 tty_ && !end ? "\033[K" : "\n");
  }

 private:
  const bool tty_ = isatty(STDERR_FILENO) != 0;
  const absl::Duration interval_ =
      tty_ ? absl::Milliseconds(100) : absl::Seconds(3);
  absl::Time begin_ = absl::InfinitePast();
  absl::Time shown_ = absl::InfinitePast();
  uint64_t begin_done_ = 0;  // there already when it began
  uint64_t last_done_ = 0;
};

}  // namespace

checkpoint::LoadProgressFn LoadDisplay() {
  return [display = std::make_shared<Display>()](
             uint64_t done, uint64_t total) { display->Show(done, total); };
}

}  // namespace conclave::worker
