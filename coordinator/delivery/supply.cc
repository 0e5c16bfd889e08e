// SPDX-License-Identifier: Apache-2.0
#include "coordinator/delivery/supply.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bounded_queue.h"
#include "common/check.h"
#include "common/delivery/deliver_frame.h"
#include "common/delivery/slice_bytes.h"
#include "common/delivery/storage_proto.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/transport/unary_call.h"

namespace conclave::delivery {
namespace {

constexpr char kDeliver[] = "/conclave.v1.WorkerDelivery/Deliver";
// A load has a few wants at a time (worker/shard_loader.cc).
constexpr size_t kWantsMax = 4096;
// After a frame that the link lost.
constexpr absl::Duration kRetryAfter = absl::Milliseconds(100);
constexpr std::chrono::milliseconds kStopCheck{20};

bool IsLost(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable ||
         status.code() == absl::StatusCode::kDeadlineExceeded;
}

}  // namespace

struct Supply::Session::Impl {
  struct Item {
    Slice slice;
    checkpoint::SliceLayout layout;
  };

  void Run();
  absl::Status Answer(const v1::SliceWant& want);
  absl::Status SendSlice(const v1::SliceWant& want, const Item& item);
  // Again and again until it is taken, refused or too late.
  absl::Status Send(const v1::DeliverHeader& header,
                    const checkpoint::SliceSpans& slice,
                    uint64_t bytes);
  v1::DeliverHeader Header(const v1::SliceWant& want) const;

  Supply* supply = nullptr;
  std::string peer;
  std::shared_ptr<grpc::Channel> channel;
  absl::Duration deadline;
  uint64_t generation = 0;
  uint64_t load = 0;
  std::vector<Item> items;  // over all shards of the assignment
  BoundedQueue<v1::SliceWant> wants{kWantsMax};
  std::atomic<bool> stop{false};
  std::vector<std::thread> streams;
};

Supply::Supply(const checkpoint::Checkpoint* checkpoint, Options options)
    : checkpoint_(checkpoint),
      options_(std::move(options)),
      manifest_(*checkpoint, options_.cache) {}

absl::Status Supply::Describe(v1::AssignRequest* request) {
  RETURN_IF_ERROR(DescribeSlices(*checkpoint_, request));
  request->set_source(manifest_.source());
  request->set_load(loads_.fetch_add(1) + 1);
  for (v1::ShardAssignment& shard : *request->mutable_shards()) {
    for (v1::SliceAssignment& slice : *shard.mutable_slices()) {
      const auto hash = manifest_.Find(FromProto(slice));
      if (hash.has_value()) slice.set_sha256(ToBytes(*hash));
    }
  }
  return absl::OkStatus();
}

std::unique_ptr<Supply::Session> Supply::Open(
    const v1::AssignRequest& request,
    const std::string& peer,
    std::shared_ptr<grpc::Channel> channel,
    absl::Duration deadline) {
  auto impl = std::make_unique<Session::Impl>();
  impl->supply = this;
  impl->peer = peer;
  impl->channel = std::move(channel);
  impl->deadline = deadline;
  impl->generation = request.generation();
  impl->load = request.load();
  const int32_t hidden = request.shape().hidden();
  for (const v1::ShardAssignment& shard : request.shards()) {
    for (const v1::SliceAssignment& slice : shard.slices()) {
      auto layout = FromProto(request.storages(slice.storage()),
                              slice.end() - slice.begin(),
                              hidden);
      CONCLAVE_CHECK(layout.ok());  // Describe wrote it
      impl->items.push_back({FromProto(slice), *layout});
    }
  }
  for (int32_t i = 0; i < options_.streams; ++i) {
    impl->streams.emplace_back([raw = impl.get()] { raw->Run(); });
  }
  return std::unique_ptr<Session>(new Session(std::move(impl)));
}

bool Supply::Acquire(uint64_t bytes, const std::atomic<bool>& stop) {
  std::unique_lock<std::mutex> lock(mu_);
  while (used_ > 0 && used_ + bytes > options_.memory_bytes) {
    if (stop) return false;
    released_.wait_for(lock, kStopCheck);
  }
  used_ += bytes;
  return true;
}

void Supply::Release(uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mu_);
  used_ -= bytes;
  released_.notify_all();
}

Supply::Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Supply::Session::~Session() {
  impl_->stop = true;
  impl_->wants.Close();
  for (std::thread& stream : impl_->streams) stream.join();
  impl_->supply->manifest_.Save();
}

void Supply::Session::Add(const v1::LoadProgress& news) {
  for (const v1::SliceWant& want : news.wants()) {
    const bool known = want.slice() >= 0 &&
                       static_cast<size_t>(want.slice()) < impl_->items.size();
    const absl::Status status =
        known ? impl_->wants.Push(want)
              : absl::InvalidArgumentError("there is no such slice");
    if (status.ok()) continue;
    log::Warning(absl::StrCat("deliver: ",
                              impl_->peer,
                              " wants slice ",
                              want.slice(),
                              ": ",
                              std::string(status.message())));
  }
}

void Supply::Session::Impl::Run() {
  while (auto want = wants.Pop(absl::InfiniteDuration())) {
    if (stop) return;
    const absl::Status status = Answer(*want);
    // The worker asks again, or gives up and says why.
    if (!status.ok() && !stop) log::Warning(std::string(status.message()));
  }
}

v1::DeliverHeader Supply::Session::Impl::Header(
    const v1::SliceWant& want) const {
  v1::DeliverHeader header;
  header.set_generation(generation);
  header.set_load(load);
  header.set_slice(want.slice());
  return header;
}

absl::Status Supply::Session::Impl::Answer(const v1::SliceWant& want) {
  const Item& item = items[static_cast<size_t>(want.slice())];
  if (want.hash_only()) {
    const auto hash = supply->manifest_.Find(item.slice);
    if (hash.has_value()) {
      v1::DeliverHeader header = Header(want);
      header.set_sha256(ToBytes(*hash));
      return Send(header, {}, 0);
    }
  }
  const uint64_t bytes = item.layout.bytes();
  if (!supply->Acquire(bytes, stop)) return absl::CancelledError("deliver");
  const absl::Status status = SendSlice(want, item);
  supply->Release(bytes);
  return status;
}

absl::Status Supply::Session::Impl::SendSlice(const v1::SliceWant& want,
                                              const Item& item) {
  Buffer storage(item.layout.bytes());
  const checkpoint::SliceSpans slice = SpansOver(storage.bytes(), item.layout);
  v1::DeliverHeader header = Header(want);
  const absl::Status read = checkpoint::ReadSlice(
      *supply->checkpoint_, item.slice, item.layout, slice);
  if (!read.ok()) {
    header.set_error(std::string(read.message()));
    return Send(header, {}, 0);
  }
  const ContentHash hash = HashOf(item.layout, slice);
  supply->manifest_.Put(item.slice, hash);
  header.set_sha256(ToBytes(hash));
  if (want.hash_only()) return Send(header, {}, 0);
  for (uint64_t at = 0; at < storage.size();) {
    const uint64_t piece = std::min(kPieceBytes, storage.size() - at);
    header.set_offset(at);
    RETURN_IF_ERROR(Send(header, slice, piece));
    at += piece;
  }
  return absl::OkStatus();
}

absl::Status Supply::Session::Impl::Send(const v1::DeliverHeader& header,
                                         const checkpoint::SliceSpans& slice,
                                         uint64_t bytes) {
  Clock* clock = supply->options_.clock;
  const absl::Time end = clock->Now() + deadline;
  const std::string what = absl::StrCat("deliver: ", peer);
  while (true) {
    std::span<std::byte> body;
    Buffer frame = MakeFrame(header, bytes, &body);
    if (bytes > 0) CopyOut(slice, header.offset(), body);
    const auto reply = transport::CallUnary(
        channel, kDeliver, std::move(frame), deadline, clock, stop, what);
    if (reply.ok() || !IsLost(reply.status()) || clock->Now() >= end) {
      return reply.status();
    }
    if (stop) return absl::CancelledError(what);
    clock->SleepUntil(clock->Now() + kRetryAfter);
  }
}

}  // namespace conclave::delivery
