// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "absl/strings/str_format.h"

namespace conclave::cli {
namespace {

constexpr size_t kBarWidth = 24;
constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kLogEvery = absl::Seconds(5);

}  // namespace

Progress::Progress(Clock* clock, bool show)
    : clock_(clock),
      show_(show),
      terminal_(isatty(STDERR_FILENO) != 0),
      last_(absl::InfinitePast()) {}

void Progress::Update(const std::string& name, uint64_t done, uint64_t total) {
  if (!show_) return;
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_->Now();
  auto row = std::find_if(
      rows_.begin(), rows_.end(), [&](const Row& r) { return r.name == name; });
  if (row == rows_.end()) {
    rows_.push_back({.name = name, .start = now, .end = {}});
    row = rows_.end() - 1;
  }
  const bool finished = done >= total && row->done < row->total;
  row->done = done;
  row->total = total;
  row->end = now;
  const absl::Duration pause = terminal_ ? kRedraw : kLogEvery;
  if (!finished && now - last_ < pause) return;
  last_ = now;
  if (terminal_) {
    Draw();
  } else {
    std::cerr << Line(*row) << "\n";
  }
}

void Progress::Draw() {
  if (drawn_ > 0) std::cerr << "\033[" << drawn_ << "A";
  for (const Row& row : rows_) std::cerr << "\r\033[K" << Line(row) << "\n";
  drawn_ = rows_.size();
  std::cerr << std::flush;
}

std::string Progress::Line(const Row& row) const {
  const double share =
      row.total == 0 ? 1.0 : static_cast<double>(row.done) / row.total;
  const double seconds =
      std::max(1e-3, absl::ToDoubleSeconds(row.end - row.start));
  const double rate = static_cast<double>(row.done) / seconds;
  const auto filled = static_cast<size_t>(share * kBarWidth);
  std::string left = row.done < row.total ? "" : "done";
  if (row.done < row.total && rate > 0) {
    left = absl::StrFormat("%.0f s left",
                           static_cast<double>(row.total - row.done) / rate);
  }
  return absl::StrFormat(
      "load %-12s [%s%s] %3.0f %%  %8.1f / %.1f MB  "
      "%7.1f MB/s  %s",
      row.name,
      std::string(filled, '#'),
      std::string(kBarWidth - filled, '.'),
      share * 100,
      row.done / 1e6,
      row.total / 1e6,
      rate / 1e6,
      left);
}

}  // namespace conclave::cli
