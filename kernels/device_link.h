// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "kernels/device_queue.h"

namespace conclave::kernels {

// Device memory for another rank, or for what it sends: both name as many
// bytes.
struct LinkPart {
  int32_t peer = 0;
  void* data = nullptr;
  size_t bytes = 0;
};

// Ranks in several processes, on several hosts, that send each other device
// memory; this is one rank's end. On GPUs by NCCL; the twin joins ranks of one
// process. Everything is between rank 0 and the others. Calls come from one
// thread at a time, but for Abort and passed.
class DeviceLink {
 public:
  struct Options {
    std::string id;  // of NewId, the same on all ranks
    int32_t rank = 0;
    int32_t ranks = 0;
    absl::Duration join_deadline = absl::Seconds(5);  // for all ranks to come
    absl::Duration deadline = absl::Seconds(5);       // for the next to pass
    // Asked by whoever waits, every now and then; an error ends the wait with
    // it. May be null.
    std::function<absl::Status()> lost = nullptr;
    Clock* clock = RealClock();
  };

  // Bytes that rank 0 hands to the others. Unavailable: this build, or this
  // machine, lacks NCCL; the message says what to do.
  static absl::StatusOr<std::string> NewId();
  // All ranks at the same time. The queue outlives the link.
  // DeadlineExceeded: not all came; says what to check. InvalidArgument: no
  // such rank or id.
  static absl::StatusOr<std::unique_ptr<DeviceLink>> Create(
      DeviceQueue* queue, const Options& options);
  // Aborts. Recordings with its exchanges are destroyed before.
  ~DeviceLink();
  DeviceLink(const DeviceLink&) = delete;
  DeviceLink& operator=(const DeviceLink&) = delete;

  // Queues one exchange, of which all parts travel at once. Each part has its
  // counterpart in one exchange of the peer; the exchanges of two ranks meet
  // in their order. Can be recorded; else it waits, with errors as Wait has
  // them, where many others are queued and have not passed. Aborted: after
  // Abort.
  absl::Status Exchange(std::span<const LinkPart> sends,
                        std::span<const LinkPart> receives);

  // Until everything queued is done. After an error the link is aborted, what
  // was received means nothing, and nothing that was queued still runs, unless
  // the device is lost (Internal). DeadlineExceeded: no exchange passed in
  // time. Aborted: by Abort. Unavailable: a peer is gone, or what NCCL says.
  absl::Status Wait();

  // Ends all exchanges, now and to come. From any thread; returns at once.
  void Abort();

  // Exchanges that ended since Create. From any thread.
  int64_t passed() const;

  struct Impl;

 private:
  explicit DeviceLink(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::kernels
