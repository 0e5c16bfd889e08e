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
    : clock_(clock), show_(show), terminal_(isatty(STDERR_FILENO) != 0) {}

bool Progress::Note(uint64_t done, uint64_t total, absl::Time now, Row& row) {
  const bool same = done == row.done && total == row.total;
  if (same && done >= total) return false;  // over, its rate stays
  // A load that begins, or another one: a worker that came back.
  if (done < row.done || total != row.total) {
    row.begin = done;
    row.start = now;
    row.shown = absl::InfinitePast();
  }
  row.done = done;
  row.total = total;
  row.end = now;
  return done >= total;
}

void Progress::Update(const std::string& name, uint64_t done, uint64_t total) {
  if (!show_) return;
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_->Now();
  auto row = std::find_if(
      rows_.begin(), rows_.end(), [&](const Row& r) { return r.name == name; });
  if (row == rows_.end()) {
    rows_.push_back({.name = name, .start = now, .end = now});
    row = rows_.end() - 1;
  }
  const bool ends = Note(done, total, now, *row);
  if (terminal_) {
    if (!ends && now - drawn_at_ < kRedraw) return;
    drawn_at_ = now;
    Draw();
  } else if (ends || (done < total && now - row->shown >= kLogEvery)) {
    row->shown = now;
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
  const double rate = static_cast<double>(row.done - row.begin) / seconds;
  const auto filled = static_cast<size_t>(share * kBarWidth);
  std::string pace;
  if (rate > 0) pace = absl::StrFormat("  %7.1f MB/s", rate / 1e6);
  if (row.done >= row.total) {
    pace += "  done";
  } else if (rate > 0) {
    absl::StrAppendFormat(&pace,
                          "  %.0f s left",
                          static_cast<double>(row.total - row.done) / rate);
  }
  return absl::StrFormat("load %-12s [%s%s] %3.0f %%  %8.1f / %.1f MB%s",
                         row.name,
                         std::string(filled, '#'),
                         std::string(kBarWidth - filled, '.'),
                         share * 100,
                         row.done / 1e6,
                         row.total / 1e6,
                         pace);
}

}  // namespace conclave::cli
