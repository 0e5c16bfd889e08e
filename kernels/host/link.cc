// SPDX-License-Identifier: Apache-2.0
// Ranks are threads of one process. What is sent lies in a box of the receiver
// until it is fetched; who waits is told by nobody that a peer has gone, as
// with NCCL, but by its deadline, by `lost` or by Abort.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/device_link.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

// Between two looks at the clock, which may be a test's.
constexpr std::chrono::milliseconds kLook(1);

using Bytes = std::vector<std::byte>;

// Where the ranks of one id meet.
struct Meeting {
  std::mutex mutex;
  std::condition_variable changed;
  int32_t ranks = 0;             // 0: nobody came
  std::map<int32_t, bool> came;  // by rank
  std::map<std::pair<int32_t, int32_t>, std::deque<Bytes>> boxes;  // from, to
};

struct Registry {
  std::mutex mutex;
  uint64_t made = 0;
  std::map<std::string, std::shared_ptr<Meeting>> meetings;
};

Registry& Meetings() {
  static auto* registry = new Registry;
  return *registry;
}

}  // namespace

struct DeviceLink::Impl {
  // Until `there`, which is asked with the meeting's mutex held.
  template <typename There>
  absl::Status Await(std::unique_lock<std::mutex>* lock,
                     absl::Duration deadline,
                     const std::string& what,
                     const There& there) {
    const absl::Time end = options.clock->Now() + deadline;
    while (!there()) {
      if (aborted) return absl::AbortedError("the link was aborted");
      if (options.lost != nullptr) {
        lock->unlock();
        const absl::Status lost = options.lost();
        lock->lock();
        RETURN_IF_ERROR(lost);
      }
      if (options.clock->Now() >= end) {
        return absl::DeadlineExceededError(
            absl::StrCat(what, " within ", absl::FormatDuration(deadline)));
      }
      meeting->changed.wait_for(*lock, kLook);
    }
    return absl::OkStatus();
  }

  absl::Status Meet();
  absl::Status Run(const std::vector<LinkPart>& sends,
                   const std::vector<LinkPart>& receives);
  absl::Status Receive(const LinkPart& part);

  DeviceQueue* queue = nullptr;
  Options options;
  std::shared_ptr<Meeting> meeting;
  std::atomic<bool> aborted = false;
  std::atomic<int64_t> passed = 0;
  absl::Status failure;  // of the first exchange that failed
};

absl::Status DeviceLink::Impl::Meet() {
  std::unique_lock<std::mutex> lock(meeting->mutex);
  if (options.ranks < 2 || options.rank < 0 || options.rank >= options.ranks ||
      (meeting->ranks != 0 && meeting->ranks != options.ranks) ||
      meeting->came[options.rank]) {
    return absl::InvalidArgumentError(absl::StrCat(
        "link: rank ", options.rank, " of ", options.ranks, " cannot join"));
  }
  meeting->ranks = options.ranks;
  meeting->came[options.rank] = true;
  meeting->changed.notify_all();
  return Await(&lock,
               options.join_deadline,
               absl::StrCat("link: not all of ", options.ranks, " ranks came"),
               [this] {
                 int32_t there = 0;
                 for (const auto& [rank, came] : meeting->came) there += came;
                 return there == options.ranks;
               });
}

absl::Status DeviceLink::Impl::Receive(const LinkPart& part) {
  std::unique_lock<std::mutex> lock(meeting->mutex);
  std::deque<Bytes>& box = meeting->boxes[{part.peer, options.rank}];
  RETURN_IF_ERROR(
      Await(&lock,
            options.deadline,
            absl::StrCat("link: nothing came from rank ", part.peer),
            [&] { return !box.empty(); }));
  const Bytes bytes = std::move(box.front());
  box.pop_front();
  if (bytes.size() != part.bytes) {
    return absl::UnavailableError(absl::StrCat("link: rank ",
                                               part.peer,
                                               " sent ",
                                               bytes.size(),
                                               " bytes where ",
                                               part.bytes,
                                               " were awaited"));
  }
  std::memcpy(part.data, bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::Status DeviceLink::Impl::Run(const std::vector<LinkPart>& sends,
                                   const std::vector<LinkPart>& receives) {
  if (aborted) return absl::AbortedError("the link was aborted");
  for (const LinkPart& part : sends) {
    const auto* from = static_cast<const std::byte*>(part.data);
    const std::lock_guard<std::mutex> lock(meeting->mutex);
    meeting->boxes[{options.rank, part.peer}].emplace_back(from,
                                                           from + part.bytes);
    meeting->changed.notify_all();
  }
  for (const LinkPart& part : receives) RETURN_IF_ERROR(Receive(part));
  ++passed;
  return absl::OkStatus();
}

absl::StatusOr<std::string> DeviceLink::NewId() {
  Registry& registry = Meetings();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  std::string id = absl::StrCat("twin of a link ", ++registry.made);
  registry.meetings[id] = std::make_shared<Meeting>();
  return id;
}

absl::StatusOr<std::unique_ptr<DeviceLink>> DeviceLink::Create(
    DeviceQueue* queue, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->queue = queue;
  impl->options = options;
  {
    Registry& registry = Meetings();
    const std::lock_guard<std::mutex> lock(registry.mutex);
    const auto it = registry.meetings.find(options.id);
    if (it == registry.meetings.end()) {
      return absl::InvalidArgumentError("link: nobody made this id");
    }
    impl->meeting = it->second;
  }
  auto out = std::unique_ptr<DeviceLink>(new DeviceLink(std::move(impl)));
  RETURN_IF_ERROR(out->impl_->Meet());
  return out;
}

DeviceLink::DeviceLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

DeviceLink::~DeviceLink() {
  Abort();
  if (impl_->options.rank != 0) return;
  Registry& registry = Meetings();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  registry.meetings.erase(impl_->options.id);
}

absl::Status DeviceLink::Exchange(std::span<const LinkPart> sends,
                                  std::span<const LinkPart> receives) {
  if (impl_->aborted) return absl::AbortedError("the link was aborted");
  host::StreamOf(impl_->queue)
      ->Do([impl = impl_.get(),
            out = std::vector<LinkPart>(sends.begin(), sends.end()),
            in = std::vector<LinkPart>(receives.begin(), receives.end())] {
        // After a failure nothing travels until Wait has told of it.
        if (impl->failure.ok()) impl->failure = impl->Run(out, in);
      });
  return absl::OkStatus();
}

absl::Status DeviceLink::Wait() {
  const absl::Status device = impl_->queue->Wait();
  if (device.ok() && impl_->failure.ok() && !impl_->aborted) return device;
  Abort();
  if (!device.ok()) return device;
  if (!impl_->failure.ok()) return impl_->failure;
  return absl::AbortedError("the link was aborted");
}

void DeviceLink::Abort() {
  impl_->aborted = true;
  impl_->meeting->changed.notify_all();
}

int64_t DeviceLink::passed() const { return impl_->passed; }

}  // namespace conclave::kernels
