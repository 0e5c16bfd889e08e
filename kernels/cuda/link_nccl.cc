// SPDX-License-Identifier: Apache-2.0
// One communicator over all ranks, never waited for inside NCCL: what it has
// begun is asked for until the deadline.
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/link.cuh"
#include "kernels/cuda/nccl_library.h"
#include "kernels/device_link.h"

namespace conclave::kernels {
namespace {

using cuda::Nccl;
using cuda::ToStatus;

// Between two questions to others than the stream.
constexpr absl::Duration kLook = absl::Milliseconds(1);
// For an abort, which returns when kernels have seen it and recordings are
// gone; after it the communicator is left to the process's end.
constexpr absl::Duration kAbortMax = absl::Seconds(10);

// An abort in a thread of its own; outlives the link where it does not end.
struct Aborter {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
};

// What NCCL says is of the link, not of the device.
absl::Status FromNccl(ncclResult_t result, const char* what) {
  const absl::Status status = cuda::FromNccl(result, what);
  return status.ok()
             ? status
             : absl::UnavailableError(absl::StrCat("link: ", status.message()));
}

// Exchanges that may be queued ahead of the one under way.
constexpr int64_t kAheadMax = 16;

constexpr int64_t kGreeting = 0x636f6e636c617665;  // + the rank that sends it

}  // namespace

struct DeviceLink::Impl {
  ~Impl();

  absl::Status Begin();
  // Until what NCCL has begun is under way.
  absl::Status Settle(absl::Duration deadline);
  // A word from rank 0 to each and back, which also connects them.
  absl::Status Greet();
  absl::Status Queue(std::span<const LinkPart> sends,
                     std::span<const LinkPart> receives);
  // Not OK: what ends the wait.
  absl::Status Look();
  // Until `done`; drains where it does not come to that.
  template <typename Done>
  absl::Status Await(const Done& done);
  // A device's queue of launches is not endless, and a launch into a full one
  // has no deadline.
  absl::Status MakeRoom();
  absl::StatusOr<bool> Recording() const;
  absl::Status Drain(const absl::Status& why);
  int64_t Passed() const {
    return *static_cast<const volatile int64_t*>(passed);
  }
  // What was queued passes too, in its way, once the link is aborted.
  int64_t PassedWhole() const {
    const int64_t then = whole;
    return then >= 0 ? then : Passed();
  }
  void Abort();

  DeviceQueue* queue = nullptr;
  Options options;
  int64_t* passed = nullptr;        // host memory
  int64_t queued = 0;               // as `passed` will be; without recordings
  std::atomic<int64_t> whole = -1;  // `passed` at the abort; -1: none yet
  DeviceBuffer greetings;           // [ranks] to send, [ranks] received
  std::mutex mutex;                 // guards what follows
  ncclComm_t comm = nullptr;
  bool aborted = false;
  std::shared_ptr<Aborter> aborter;
};

void DeviceLink::Impl::Abort() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (std::exchange(aborted, true)) return;
  if (passed != nullptr) whole = Passed();
  if (comm == nullptr) return;
  aborter = std::make_shared<Aborter>();
  std::thread([comm = comm, device = queue->device(), state = aborter] {
    cudaSetDevice(device);
    Nccl().abort(comm);
    const std::lock_guard<std::mutex> held(state->mutex);
    state->done = true;
    state->changed.notify_all();
  }).detach();
}

DeviceLink::Impl::~Impl() {
  Abort();
  bool done = true;
  if (aborter != nullptr) {
    std::unique_lock<std::mutex> lock(aborter->mutex);
    done = aborter->changed.wait_for(lock,
                                     absl::ToChronoNanoseconds(kAbortMax),
                                     [this] { return aborter->done; });
  }
  if (!done) {
    log::Warning("NCCL: a communicator does not end; its memory is lost");
    return;
  }
  if (passed != nullptr) cudaFreeHost(passed);
}

absl::Status DeviceLink::Impl::Settle(absl::Duration deadline) {
  const absl::Time end = options.clock->Now() + deadline;
  while (true) {
    ncclResult_t state = ncclSuccess;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (aborted) return absl::AbortedError("the link was aborted");
      RETURN_IF_ERROR(
          FromNccl(Nccl().async_error(comm, &state), "asking how it is"));
    }
    if (state != ncclInProgress) return FromNccl(state, "connecting ranks");
    if (options.lost != nullptr) RETURN_IF_ERROR(options.lost());
    if (options.clock->Now() >= end) {
      return absl::DeadlineExceededError(absl::StrCat(
          "link: not all of ",
          options.ranks,
          " ranks came within ",
          absl::FormatDuration(deadline),
          "; check that their hosts reach each other (NCCL_SOCKET_IFNAME "
          "chooses the network) and run one version of NCCL; NCCL_DEBUG=INFO "
          "tells more"));
    }
    std::this_thread::yield();
  }
}

absl::Status DeviceLink::Impl::Begin() {
  if (options.ranks < 2 || options.rank < 0 || options.rank >= options.ranks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "link: rank ", options.rank, " of ", options.ranks, " cannot join"));
  }
  ncclUniqueId id;
  if (options.id.size() != sizeof(id)) {
    return absl::InvalidArgumentError("link: nobody made this id");
  }
  std::memcpy(&id, options.id.data(), sizeof(id));
  RETURN_IF_ERROR(
      ToStatus(cudaSetDevice(queue->device()), "choosing the device"));
  void* word = nullptr;
  RETURN_IF_ERROR(ToStatus(
      cudaHostAlloc(
          &word, sizeof(*passed), cudaHostAllocPortable | cudaHostAllocMapped),
      "allocating host memory"));
  passed = static_cast<int64_t*>(word);
  *passed = 0;
  ASSIGN_OR_RETURN(
      greetings,
      queue->Allocate(static_cast<size_t>(2 * options.ranks) * sizeof(int64_t),
                      "greetings of a link"));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    RETURN_IF_ERROR(FromNccl(
        Nccl().init_rank(&comm, options.ranks, id, options.rank, &config),
        "making a communicator"));
  }
  return Settle(options.join_deadline);
}

absl::Status DeviceLink::Impl::Queue(std::span<const LinkPart> sends,
                                     std::span<const LinkPart> receives) {
  const auto stream = static_cast<cudaStream_t>(queue->stream());
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (aborted) return absl::AbortedError("the link was aborted");
    RETURN_IF_ERROR(FromNccl(Nccl().group_start(), "beginning an exchange"));
    absl::Status status;
    for (const LinkPart& part : sends) {
      status.Update(FromNccl(
          Nccl().send(part.data, part.bytes, ncclInt8, part.peer, comm, stream),
          "sending"));
    }
    for (const LinkPart& part : receives) {
      status.Update(FromNccl(
          Nccl().receive(
              part.data, part.bytes, ncclInt8, part.peer, comm, stream),
          "receiving"));
    }
    status.Update(FromNccl(Nccl().group_end(), "queueing an exchange"));
    RETURN_IF_ERROR(status);
  }
  const absl::Status settled = Settle(options.deadline);
  if (settled.ok()) return cuda::QueuePassed(queue, passed);
  ASSIGN_OR_RETURN(const bool recording, Recording());
  if (!recording) return Drain(settled);
  Abort();
  return settled;
}

absl::StatusOr<bool> DeviceLink::Impl::Recording() const {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  RETURN_IF_ERROR(
      ToStatus(cudaStreamIsCapturing(static_cast<cudaStream_t>(queue->stream()),
                                     &capture),
               "asking whether a step is recorded"));
  return capture != cudaStreamCaptureStatusNone;
}

absl::Status DeviceLink::Impl::MakeRoom() {
  ASSIGN_OR_RETURN(const bool recording, Recording());
  if (recording) return absl::OkStatus();
  ++queued;
  if (queued - Passed() <= kAheadMax) return absl::OkStatus();
  return Await([this](cudaError_t) { return queued - Passed() <= kAheadMax; });
}

absl::Status DeviceLink::Impl::Greet() {
  const auto ranks = static_cast<size_t>(options.ranks);
  std::vector<int64_t> words(2 * ranks);
  words[static_cast<size_t>(options.rank)] = kGreeting + options.rank;
  auto* at = greetings.as<int64_t>();
  RETURN_IF_ERROR(
      queue->Upload(words.data(), words.size() * sizeof(int64_t), at));
  std::vector<LinkPart> sends, receives;
  const int32_t end = options.rank == 0 ? options.ranks : 1;
  for (int32_t peer = options.rank == 0 ? 1 : 0; peer < end; ++peer) {
    sends.push_back({peer, at + options.rank, sizeof(int64_t)});
    receives.push_back({peer, at + options.ranks + peer, sizeof(int64_t)});
  }
  RETURN_IF_ERROR(Queue(sends, receives));
  return absl::OkStatus();
}

absl::Status DeviceLink::Impl::Look() {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (aborted) return absl::AbortedError("the link was aborted");
    ncclResult_t state = ncclSuccess;
    RETURN_IF_ERROR(
        FromNccl(Nccl().async_error(comm, &state), "asking how it is"));
    if (state != ncclSuccess && state != ncclInProgress) {
      return absl::UnavailableError(absl::StrCat(
          "link: a peer is gone (NCCL: ", Nccl().error(state), ")"));
    }
  }
  return options.lost == nullptr ? absl::OkStatus() : options.lost();
}

template <typename Done>
absl::Status DeviceLink::Impl::Await(const Done& done) {
  const auto stream = static_cast<cudaStream_t>(queue->stream());
  int64_t before = Passed();
  absl::Time since = options.clock->Now(), looked = since;
  while (true) {
    const cudaError_t error = cudaStreamQuery(stream);
    if (error != cudaSuccess && error != cudaErrorNotReady) {
      return Drain(ToStatus(error, "waiting for the device"));
    }
    const bool ended = done(error);
    const absl::Time now = options.clock->Now();
    if (ended || now - looked >= kLook) {
      looked = now;
      const absl::Status status = Look();
      if (!status.ok()) return Drain(status);
      if (ended) return absl::OkStatus();
    }
    if (const int64_t after = Passed(); after != before) {
      before = after;
      since = now;
    } else if (now - since >= options.deadline) {
      return Drain(absl::DeadlineExceededError(
          absl::StrCat("link: no exchange passed within ",
                       absl::FormatDuration(options.deadline))));
    }
    std::this_thread::yield();
  }
}

// Kernels of NCCL see an abort; then the stream comes to its end.
absl::Status DeviceLink::Impl::Drain(const absl::Status& why) {
  Abort();
  const auto stream = static_cast<cudaStream_t>(queue->stream());
  const absl::Time end = options.clock->Now() + kAbortMax;
  while (true) {
    const cudaError_t error = cudaStreamQuery(stream);
    if (error == cudaSuccess) return why;
    if (error != cudaErrorNotReady) {
      return ToStatus(error, "waiting for the device");
    }
    const absl::Time now = options.clock->Now();
    if (now >= end) {
      return absl::InternalError(
          absl::StrCat("the device does not end what an aborted link began (",
                       why.message(),
                       ")"));
    }
    options.clock->SleepUntil(now + kLook);
  }
}

absl::StatusOr<std::string> DeviceLink::NewId() {
  RETURN_IF_ERROR(Nccl().Check());
  ncclUniqueId id;
  RETURN_IF_ERROR(FromNccl(Nccl().get_unique_id(&id), "making an id"));
  return std::string(id.internal, sizeof(id.internal));
}

absl::StatusOr<std::unique_ptr<DeviceLink>> DeviceLink::Create(
    DeviceQueue* queue, const Options& options) {
  RETURN_IF_ERROR(Nccl().Check());
  auto impl = std::make_unique<Impl>();
  impl->queue = queue;
  impl->options = options;
  auto out = std::unique_ptr<DeviceLink>(new DeviceLink(std::move(impl)));
  Impl& link = *out->impl_;
  RETURN_IF_ERROR(link.Begin());
  RETURN_IF_ERROR(link.Greet());
  RETURN_IF_ERROR(out->Wait());
  std::vector<int64_t> words(static_cast<size_t>(2 * options.ranks));
  RETURN_IF_ERROR(queue->Download(link.greetings.as<int64_t>(),
                                  words.size() * sizeof(int64_t),
                                  words.data()));
  const int32_t end = options.rank == 0 ? options.ranks : 1;
  for (int32_t peer = options.rank == 0 ? 1 : 0; peer < end; ++peer) {
    if (words[static_cast<size_t>(options.ranks + peer)] == kGreeting + peer) {
      continue;
    }
    return absl::UnavailableError(
        absl::StrCat("link: rank ", peer, " sent another's greeting"));
  }
  return out;
}

DeviceLink::DeviceLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceLink::~DeviceLink() = default;

absl::Status DeviceLink::Exchange(std::span<const LinkPart> sends,
                                  std::span<const LinkPart> receives) {
  RETURN_IF_ERROR(impl_->MakeRoom());
  return impl_->Queue(sends, receives);
}

absl::Status DeviceLink::Wait() {
  Impl& link = *impl_;
  RETURN_IF_ERROR(
      link.Await([](cudaError_t stream) { return stream == cudaSuccess; }));
  link.queued = link.Passed();
  return absl::OkStatus();
}

void DeviceLink::Abort() { impl_->Abort(); }

int64_t DeviceLink::passed() const { return impl_->PassedWhole(); }

}  // namespace conclave::kernels
