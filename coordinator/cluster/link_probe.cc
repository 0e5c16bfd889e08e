// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/link_probe.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace conclave::cluster {
namespace {

// Rounds of one measurement: so long, and at least and at most so many.
constexpr absl::Duration kRoundsFor = absl::Milliseconds(400);
constexpr size_t kRoundsMin = 15, kRoundsMax = 1000;
constexpr size_t kWarmUp = 5;
// A transfer shows the rate when it takes this much longer than an empty one.
constexpr double kTransferSeconds = 0.05;
constexpr uint64_t kTransferBytesMin = uint64_t{512} << 10;
constexpr uint64_t kTransferBytesMax = uint64_t{64} << 20;
constexpr size_t kTransfers = 3;

double Median(std::vector<double> values) {
  const auto middle =
      values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

LinkProbe::LinkProbe(transport::Transport* transport,
                     Clock* clock,
                     absl::Duration deadline)
    : transport_(transport), clock_(clock), deadline_(deadline) {}

absl::Status LinkProbe::Start(const std::vector<WorkerId>& workers,
                              uint64_t out,
                              uint64_t back) {
  ++tag_.step;
  back_ = back;
  until_ = clock_->Now() + deadline_;
  open_ = {workers.begin(), workers.end()};
  for (const WorkerId worker : workers) {
    RETURN_IF_ERROR(transport_->Send(
        worker,
        transport::EncodeProbe(
            {.tag = tag_, .payload_bytes = out, .reply_bytes = back})));
  }
  return absl::OkStatus();
}

absl::Status LinkProbe::Finish() {
  while (!open_.empty()) {
    const auto delivery = transport_->Receive(until_);
    if (!delivery.ok()) {
      std::vector<std::string> silent;
      for (const WorkerId id : open_) {
        silent.push_back(transport_->PeerName(id));
      }
      return absl::DeadlineExceededError(
          absl::StrCat("measure link: ",
                       absl::StrJoin(silent, ", "),
                       ": no answer within ",
                       absl::FormatDuration(deadline_)));
    }
    if (!open_.contains(delivery->from)) continue;
    RETURN_IF_ERROR(delivery->frame.status());
    const auto answer = transport::DecodeProbe(delivery->frame->bytes());
    if (answer.ok() && answer->tag != tag_) continue;  // of an earlier round
    if (!answer.ok() || answer->payload_bytes < back_) {
      return absl::FailedPreconditionError(
          absl::StrCat("measure link: ",
                       transport_->PeerName(delivery->from),
                       " does not answer probes; run the same version on both "
                       "sides"));
    }
    open_.erase(delivery->from);
  }
  return absl::OkStatus();
}

absl::StatusOr<double> LinkProbe::Once(const std::vector<WorkerId>& workers,
                                       uint64_t out,
                                       uint64_t back) {
  const absl::Time begin = clock_->Now();
  RETURN_IF_ERROR(Start(workers, out, back));
  RETURN_IF_ERROR(Finish());
  return absl::ToDoubleSeconds(clock_->Now() - begin);
}

absl::StatusOr<double> LinkProbe::RoundTrip(
    const std::vector<WorkerId>& workers) {
  for (size_t i = 0; i < kWarmUp; ++i) {
    RETURN_IF_ERROR(Once(workers, 0, 0).status());
  }
  std::vector<double> seconds;
  const absl::Time until = clock_->Now() + kRoundsFor;
  while (seconds.size() < kRoundsMin ||
         (seconds.size() < kRoundsMax && clock_->Now() < until)) {
    ASSIGN_OR_RETURN(seconds.emplace_back(), Once(workers, 0, 0));
  }
  return Median(std::move(seconds));
}

absl::StatusOr<double> LinkProbe::Rate(const std::vector<WorkerId>& workers,
                                       double round_trip_s,
                                       bool is_out) {
  const auto once = [&](uint64_t bytes) -> absl::StatusOr<double> {
    ASSIGN_OR_RETURN(
        const double seconds,
        is_out ? Once(workers, bytes, 0) : Once(workers, 0, bytes));
    return std::max(seconds - round_trip_s, 1e-9);
  };
  uint64_t bytes = kTransferBytesMin;
  while (true) {
    ASSIGN_OR_RETURN(const double seconds, once(bytes));
    if (seconds >= kTransferSeconds || bytes >= kTransferBytesMax) break;
    bytes *= 2;
  }
  std::vector<double> seconds;
  for (size_t i = 0; i < kTransfers; ++i) {
    ASSIGN_OR_RETURN(seconds.emplace_back(), once(bytes));
  }
  return static_cast<double>(bytes * workers.size()) /
         Median(std::move(seconds));
}

absl::StatusOr<LinkSpeed> LinkProbe::MeasureAll(
    const std::vector<WorkerId>& workers) {
  LinkSpeed speed;
  ASSIGN_OR_RETURN(speed.round_trip_s, RoundTrip(workers));
  ASSIGN_OR_RETURN(speed.out_bytes_per_s,
                   Rate(workers, speed.round_trip_s, true));
  ASSIGN_OR_RETURN(speed.back_bytes_per_s,
                   Rate(workers, speed.round_trip_s, false));
  return speed;
}

absl::StatusOr<LinkSpeed> LinkProbe::Measure(WorkerId worker) {
  return MeasureAll({worker});
}

}  // namespace conclave::cluster
