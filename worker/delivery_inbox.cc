// SPDX-License-Identifier: Apache-2.0
#include "worker/delivery_inbox.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/delivery/deliver_frame.h"

namespace conclave::worker {
namespace {

// How soon a wait looks at the clock.
constexpr std::chrono::milliseconds kClockCheck{20};

}  // namespace

Arrival::Arrival(std::string frame, transport::Responder respond)
    : frame_(std::make_unique<std::string>(std::move(frame))),
      respond_(std::move(respond)) {}

Arrival::~Arrival() { Answer(absl::AbortedError("deliver: the load ended")); }

absl::Status Arrival::Parse() {
  auto parsed = delivery::ParseFrame(*frame_);
  if (!parsed.ok()) return parsed.status();
  header_ = std::move(parsed->header);
  body_ = parsed->body;
  return absl::OkStatus();
}

void Arrival::Answer(const absl::Status& status) {
  if (respond_.finish == nullptr) return;
  if (status.ok()) respond_.send(v1::DeliverReply().SerializeAsString());
  respond_.finish(status);
  respond_.finish = nullptr;
}

void DeliveryInbox::Begin(uint64_t generation, uint64_t load) {
  const std::lock_guard<std::mutex> lock(mu_);
  open_ = true;
  generation_ = generation;
  load_ = load;
  slices_.clear();
}

void DeliveryInbox::End() {
  const std::lock_guard<std::mutex> lock(mu_);
  open_ = false;
  slices_.clear();
  came_.notify_all();
}

void DeliveryInbox::Expect(int32_t slice) {
  const std::lock_guard<std::mutex> lock(mu_);
  slices_[slice].clear();
}

void DeliveryInbox::Forget(int32_t slice) {
  const std::lock_guard<std::mutex> lock(mu_);
  slices_.erase(slice);
}

absl::StatusOr<Arrival> DeliveryInbox::Take(int32_t slice,
                                            absl::Duration deadline) {
  std::unique_lock<std::mutex> lock(mu_);
  const absl::Time end = clock_->Now() + deadline;
  while (open_ && !*stop_) {
    const auto it = slices_.find(slice);
    if (it == slices_.end()) break;
    if (!it->second.empty()) {
      Arrival out = std::move(it->second.front());
      it->second.pop_front();
      return out;
    }
    if (clock_->Now() >= end) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the coordinator sent nothing for ", absl::FormatDuration(deadline)));
    }
    came_.wait_for(lock, kClockCheck);
  }
  return absl::CancelledError("the load was stopped");
}

void DeliveryInbox::Deliver(std::string frame, transport::Responder respond) {
  Arrival arrival(std::move(frame), std::move(respond));
  if (const absl::Status status = arrival.Parse(); !status.ok()) {
    return arrival.Answer(status);
  }
  const v1::DeliverHeader& header = arrival.header();
  const std::lock_guard<std::mutex> lock(mu_);
  const auto it = slices_.find(header.slice());
  if (!open_ || header.generation() != generation_ || header.load() != load_ ||
      it == slices_.end()) {
    return arrival.Answer(absl::FailedPreconditionError(absl::StrCat(
        "deliver: slice ", header.slice(), " is not asked for (any longer)")));
  }
  it->second.push_back(std::move(arrival));
  came_.notify_all();
}

}  // namespace conclave::worker
