// SPDX-License-Identifier: Apache-2.0
#include "common/transport/grpc_transport.h"

#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/transport/byte_buffers.h"
#include "common/transport/channel.h"
#include "common/transport/poller.h"
#include "common/version.h"
#include "grpcpp/generic/generic_stub.h"

namespace conclave::transport {
namespace {

enum class OpKind { kStart, kMetadata, kRead, kWrite, kFinish };

struct Stream;

// The tag of one operation in the completion queue.
struct Op {
  OpKind kind;
  Stream* stream;
};

// One gRPC stream. Lives until gRPC has returned all its operations, so longer
// than its link if that was dropped.
struct Stream {
  Stream(WorkerId worker, uint64_t link) : worker(worker), link(link) {}

  WorkerId worker;
  uint64_t link;  // number of the link that it belongs to
  grpc::ClientContext context;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
  grpc::ByteBuffer incoming;
  std::deque<Buffer> waiting;  // gRPC takes one write at a time
  grpc::Status status;
  Op start{OpKind::kStart, this};
  Op metadata{OpKind::kMetadata, this};
  Op read{OpKind::kRead, this};
  Op write{OpKind::kWrite, this};
  Op finish{OpKind::kFinish, this};
  int pending = 0;  // operations that gRPC has
  bool open = false;
  bool writing = false;
};

struct Link {
  GrpcTransport::Peer peer;
  uint64_t number = 0;
  absl::Status broken;  // OK while the link lives
  Stream* exchange = nullptr;
  Stream* bulk = nullptr;
};

struct Arrival {
  WorkerId from;
  absl::Status status;
  Buffer frame;
};

}  // namespace

// All functions are called with `mu` held. A std::mutex, because the thread
// sanitizer sees through it and not through a distribution's absl::Mutex.
struct GrpcTransport::Impl {
  explicit Impl(const Options& options) : options(options) {
    CONCLAVE_CHECK(options.clock != nullptr);
  }

  void Handle(const QueueEvent& event);
  void StartRead(Stream* stream);
  void StartWrite(Stream* stream, Buffer frame);
  void StartFinish(Stream* stream);
  Stream* OpenStream(WorkerId id,
                     uint64_t link,
                     const std::shared_ptr<grpc::Channel>& channel);
  // Cancels the streams and remembers why; later Sends say it.
  void Break(WorkerId id, Link* link, const absl::Status& reason);
  void PumpLocked();
  Link* Find(WorkerId id) {
    const auto it = links.find(id);
    return it == links.end() ? nullptr : &it->second;
  }

  const Options options;
  grpc::CompletionQueue queue;
  mutable std::mutex mu;   // guards all below
  bool receiving = false;  // somebody polls without mu
  uint64_t last_link = 0;
  std::map<WorkerId, Link> links;
  absl::flat_hash_set<Stream*> streams;
  std::deque<Arrival> arrivals;
};

void GrpcTransport::Impl::StartRead(Stream* stream) {
  ++stream->pending;
  stream->call->Read(&stream->incoming, &stream->read);
}

void GrpcTransport::Impl::StartWrite(Stream* stream, Buffer frame) {
  ++stream->pending;
  stream->writing = true;
  stream->call->Write(ToByteBuffer(std::move(frame)),
                      grpc::WriteOptions().set_no_compression(),
                      &stream->write);
}

void GrpcTransport::Impl::StartFinish(Stream* stream) {
  ++stream->pending;
  stream->open = false;
  stream->waiting.clear();
  stream->call->Finish(&stream->status, &stream->finish);
}

Stream* GrpcTransport::Impl::OpenStream(
    WorkerId id, uint64_t link, const std::shared_ptr<grpc::Channel>& channel) {
  auto* stream = new Stream(id, link);
  streams.insert(stream);
  grpc::GenericStub stub(channel);
  stream->call = stub.PrepareCall(&stream->context, kExchangeMethod, &queue);
  ++stream->pending;
  stream->call->StartCall(&stream->start);
  return stream;
}

void GrpcTransport::Impl::Break(WorkerId id,
                                Link* link,
                                const absl::Status& reason) {
  if (!link->broken.ok()) return;
  link->broken = reason;
  for (Stream* stream : {link->exchange, link->bulk}) {
    if (stream != nullptr) stream->context.TryCancel();
  }
  link->exchange = link->bulk = nullptr;
  arrivals.push_back(Arrival{id, reason, Buffer()});
}

void GrpcTransport::Impl::Handle(const QueueEvent& event) {
  const Op& op = *static_cast<Op*>(event.tag);
  Stream* stream = op.stream;
  --stream->pending;
  Link* link = Find(stream->worker);
  if (link != nullptr && link->number != stream->link) link = nullptr;
  const bool alive = link != nullptr && link->broken.ok();
  switch (op.kind) {
    case OpKind::kStart:
      if (!event.ok) {
        StartFinish(stream);
        break;
      }
      ++stream->pending;
      stream->call->ReadInitialMetadata(&stream->metadata);
      break;
    case OpKind::kMetadata: {
      // A call that failed has no such metadata; the read then says why.
      const auto& metadata = stream->context.GetServerInitialMetadata();
      const auto it = metadata.find(kProtocolKey);
      stream->open = event.ok && it != metadata.end() &&
                     it->second == absl::StrCat(kProtocolVersion);
      StartRead(stream);
      break;
    }
    case OpKind::kRead:
      if (!event.ok) {
        StartFinish(stream);
        break;
      }
      if (alive) {
        arrivals.push_back(Arrival{
            stream->worker, absl::OkStatus(), ToBuffer(stream->incoming)});
      }
      stream->incoming.Clear();
      StartRead(stream);
      break;
    case OpKind::kWrite:
      stream->writing = false;
      if (!event.ok || stream->waiting.empty()) break;
      StartWrite(stream, std::move(stream->waiting.front()));
      stream->waiting.pop_front();
      break;
    case OpKind::kFinish:
      if (alive) {
        const grpc::Status& status = stream->status;
        Break(stream->worker,
              link,
              absl::UnavailableError(
                  absl::StrCat("exchange: ",
                               link->peer.name,
                               ": link broke: ",
                               status.ok() ? "the worker closed the stream"
                                           : status.error_message())));
      }
      break;
  }
  if (stream->pending == 0) {
    streams.erase(stream);
    delete stream;
  }
}

void GrpcTransport::Impl::PumpLocked() {
  QueueEvent event;
  while (PollQueue(&queue, 0, absl::ZeroDuration(), &event) ==
         PollResult::kEvent) {
    Handle(event);
  }
}

GrpcTransport::GrpcTransport(const Options& options)
    : impl_(std::make_unique<Impl>(options)) {}

GrpcTransport::~GrpcTransport() {
  Impl& impl = *impl_;
  {
    const std::lock_guard<std::mutex> lock(impl.mu);
    for (Stream* stream : impl.streams) stream->context.TryCancel();
    impl.links.clear();
    QueueEvent event;
    // Cancelled operations come back at once, whatever the peer does.
    while (!impl.streams.empty() &&
           PollQueue(&impl.queue, 0, absl::InfiniteDuration(), &event) ==
               PollResult::kEvent) {
      impl.Handle(event);
    }
  }
  impl.queue.Shutdown();
  QueueEvent event;
  while (PollQueue(&impl.queue, 0, absl::InfiniteDuration(), &event) !=
         PollResult::kShutdown) {
  }
}

void GrpcTransport::Connect(WorkerId id, Peer peer) {
  CONCLAVE_CHECK(peer.exchange != nullptr && peer.bulk != nullptr);
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mu);
  Link& link = impl.links[id];
  impl.Break(id, &link, absl::UnavailableError("replaced by a new link"));
  // What the old link had to say would fail steps of the new one.
  std::erase_if(impl.arrivals,
                [id](const Arrival& arrival) { return arrival.from == id; });
  link.peer = std::move(peer);
  link.number = ++impl.last_link;
  link.broken = absl::OkStatus();
  link.exchange = impl.OpenStream(id, link.number, link.peer.exchange);
  link.bulk = impl.OpenStream(id, link.number, link.peer.bulk);
}

void GrpcTransport::Disconnect(WorkerId id, const absl::Status& reason) {
  const std::lock_guard<std::mutex> lock(impl_->mu);
  Link* link = impl_->Find(id);
  if (link == nullptr) return;
  impl_->Break(id,
               link,
               absl::UnavailableError(absl::StrCat(
                   "exchange: ", link->peer.name, ": ", reason.message())));
}

absl::Status GrpcTransport::LinkStatus(WorkerId id) const {
  const std::lock_guard<std::mutex> lock(impl_->mu);
  const Link* link = impl_->Find(id);
  if (link == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("exchange: worker ", Index(id), " was never connected"));
  }
  if (!link->broken.ok()) return link->broken;
  if (link->exchange->open && link->bulk->open) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      "exchange: ", link->peer.name, ": the streams are not open yet"));
}

bool GrpcTransport::IsBroken(WorkerId id) const {
  const std::lock_guard<std::mutex> lock(impl_->mu);
  const Link* link = impl_->Find(id);
  return link == nullptr || !link->broken.ok();
}

void GrpcTransport::Pump() {
  const std::lock_guard<std::mutex> lock(impl_->mu);
  if (!impl_->receiving) impl_->PumpLocked();
}

absl::Status GrpcTransport::Send(WorkerId to, Buffer frame) {
  if (frame.size() > limits::kFrameBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat("exchange: ",
                                                     PeerName(to),
                                                     ": a frame of ",
                                                     frame.size(),
                                                     " bytes, the limit is ",
                                                     limits::kFrameBytesMax));
  }
  const absl::Status status = LinkStatus(to);
  if (!status.ok()) return status;
  const std::lock_guard<std::mutex> lock(impl_->mu);
  Link* link = impl_->Find(to);
  if (!link->broken.ok()) return link->broken;
  const auto stream = [link, &frame] {
    return frame.size() > limits::kBulkFrameBytes ? link->bulk : link->exchange;
  };
  // The last write may be done and not yet noticed.
  if (stream()->writing) impl_->PumpLocked();
  if (!link->broken.ok()) return link->broken;
  if (stream()->writing) {
    stream()->waiting.push_back(std::move(frame));
  } else {
    impl_->StartWrite(stream(), std::move(frame));
  }
  return absl::OkStatus();
}

absl::StatusOr<Delivery> GrpcTransport::Receive(absl::Time deadline) {
  Impl& impl = *impl_;
  QueueEvent event;
  auto polled = PollResult::kTimeout;
  bool late = false;
  while (true) {
    absl::Duration timeout;
    {
      const std::lock_guard<std::mutex> lock(impl.mu);
      impl.receiving = false;
      if (polled == PollResult::kEvent) impl.Handle(event);
      if (!impl.arrivals.empty()) {
        Arrival arrival = std::move(impl.arrivals.front());
        impl.arrivals.pop_front();
        if (!arrival.status.ok()) return Delivery{arrival.from, arrival.status};
        return Delivery{arrival.from, std::move(arrival.frame)};
      }
      if (late && polled != PollResult::kEvent) {
        return absl::DeadlineExceededError(
            "exchange: no frame came from any worker in time");
      }
      timeout = deadline - impl.options.clock->Now();
      late = timeout <= absl::ZeroDuration();
      impl.receiving = true;
    }
    // The lock is free meanwhile: links come and go beside a step.
    polled = PollQueue(&impl.queue,
                       impl.options.spin_us,
                       std::max(timeout, absl::ZeroDuration()),
                       &event);
  }
}

std::string GrpcTransport::PeerName(WorkerId worker) const {
  const std::lock_guard<std::mutex> lock(impl_->mu);
  const Link* link = impl_->Find(worker);
  return link == nullptr ? absl::StrCat("worker ", Index(worker))
                         : link->peer.name;
}

}  // namespace conclave::transport
