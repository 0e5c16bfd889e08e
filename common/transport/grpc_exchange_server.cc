// SPDX-License-Identifier: Apache-2.0
#include "common/transport/grpc_exchange_server.h"

#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/transport/byte_buffers.h"
#include "common/transport/channel.h"
#include "common/transport/poller.h"
#include "common/version.h"
#include "grpcpp/alarm.h"
#include "grpcpp/generic/async_generic_service.h"

namespace conclave::transport {
namespace {

// Answers that wait for a slow reader before no further frame is read.
constexpr size_t kWaitingMax = 4;

enum class OpKind { kAccept, kMetadata, kRead, kWrite, kFinish };

struct Call;

struct Op {
  OpKind kind;
  Call* call;
};

// One stream, from the wait for it to its end.
struct Call {
  grpc::GenericServerContext context;
  grpc::GenericServerAsyncReaderWriter stream{&context};
  grpc::ByteBuffer incoming;
  std::deque<Buffer> waiting;  // gRPC takes one write at a time
  Op accept{OpKind::kAccept, this};
  Op metadata{OpKind::kMetadata, this};
  Op read{OpKind::kRead, this};
  Op write{OpKind::kWrite, this};
  Op finish{OpKind::kFinish, this};
  int pending = 0;  // operations that gRPC has
  bool reading = false;
  bool writing = false;
  bool ended = false;  // the client has said all, or is gone
  bool finishing = false;

  // Of a control call, whose handler may answer in any thread.
  bool control = false;
  std::mutex mu;      // guards `waiting`, `pending` and the flags then
  bool held = false;  // the handler has not finished it
  grpc::Status status;
};

}  // namespace

// All but the constructor's part runs in the poller's thread.
struct GrpcExchangeServer::Impl {
  explicit Impl(Options options) : options(std::move(options)) {}

  void Run();
  void WaitForCall();
  void Handle(const QueueEvent& event);
  void Accepted(Call* call);
  void Received(Call* call);
  void StartRead(Call* call);
  void StartWrite(Call* call, Buffer frame);
  void Finish(Call* call, const grpc::Status& status);
  void ControlReceived(Call* call);
  // Writes or ends what waits; with call->mu held.
  void AdvanceControl(Call* call);
  void HandleControl(Call* call, const Op& op, bool ok);
  // Ends the call when there is nothing left to read or write.
  void Advance(Call* call);

  Options options;
  grpc::AsyncGenericService service;
  std::unique_ptr<grpc::ServerCompletionQueue> queue;
  absl::flat_hash_set<Call*> calls;
  std::thread poller;
};

void GrpcExchangeServer::Impl::WaitForCall() {
  auto* call = new Call;
  calls.insert(call);
  ++call->pending;
  service.RequestCall(
      &call->context, &call->stream, queue.get(), queue.get(), &call->accept);
}

void GrpcExchangeServer::Impl::StartRead(Call* call) {
  ++call->pending;
  call->reading = true;
  call->stream.Read(&call->incoming, &call->read);
}

void GrpcExchangeServer::Impl::StartWrite(Call* call, Buffer frame) {
  ++call->pending;
  call->writing = true;
  call->stream.Write(ToByteBuffer(std::move(frame)),
                     grpc::WriteOptions().set_no_compression(),
                     &call->write);
}

void GrpcExchangeServer::Impl::Finish(Call* call, const grpc::Status& status) {
  if (call->finishing) return;
  call->finishing = true;
  ++call->pending;
  call->stream.Finish(status, &call->finish);
}

void GrpcExchangeServer::Impl::Accepted(Call* call) {
  WaitForCall();
  call->control = call->context.method() != kExchangeMethod;
  if (call->control && options.control != nullptr) {
    StartRead(call);
    return;
  }
  if (call->control) {
    Finish(call,
           {grpc::StatusCode::UNIMPLEMENTED,
            absl::StrCat("there is no method ", call->context.method())});
    return;
  }
  if (calls.size() > static_cast<size_t>(limits::kWorkersMax)) {
    Finish(call,
           {grpc::StatusCode::RESOURCE_EXHAUSTED,
            "this worker has too many exchange streams"});
    return;
  }
  call->context.AddInitialMetadata(kProtocolKey,
                                   absl::StrCat(kProtocolVersion));
  ++call->pending;
  call->stream.SendInitialMetadata(&call->metadata);
}

void GrpcExchangeServer::Impl::Received(Call* call) {
  Buffer answer;
  {
    const FlatMessage frame(call->incoming);
    answer = options.handler(frame.bytes());
  }
  call->incoming.Clear();
  if (call->writing) {
    call->waiting.push_back(std::move(answer));
  } else {
    StartWrite(call, std::move(answer));
  }
}

void GrpcExchangeServer::Impl::Advance(Call* call) {
  if (call->finishing || call->reading) return;
  if (!call->ended && call->waiting.size() < kWaitingMax) {
    StartRead(call);
  } else if (call->ended && !call->writing) {
    Finish(call, grpc::Status::OK);
  }
}

void GrpcExchangeServer::Impl::ControlReceived(Call* call) {
  std::string message = ToText(call->incoming);
  call->incoming.Clear();
  call->held = true;
  Responder respond;
  respond.send = [this, call](std::string text) {
    const std::lock_guard<std::mutex> lock(call->mu);
    call->waiting.push_back(Buffer::Copy(std::as_bytes(std::span(text))));
    AdvanceControl(call);
  };
  respond.finish = [this, call](const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(call->mu);
    call->held = false;
    call->status = grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                                std::string(status.message()));
    AdvanceControl(call);
  };
  options.control(
      call->context.method(), std::move(message), std::move(respond));
}

void GrpcExchangeServer::Impl::AdvanceControl(Call* call) {
  if (call->ended) call->waiting.clear();
  if (call->writing || call->finishing) return;
  if (!call->waiting.empty()) {
    StartWrite(call, std::move(call->waiting.front()));
    call->waiting.pop_front();
  } else if (!call->held) {
    Finish(call, call->status);
  }
}

void GrpcExchangeServer::Impl::HandleControl(Call* call,
                                             const Op& op,
                                             bool ok) {
  bool over = false;
  if (op.kind == OpKind::kRead && ok) ControlReceived(call);
  {
    const std::lock_guard<std::mutex> lock(call->mu);
    --call->pending;
    if (op.kind == OpKind::kWrite) call->writing = false;
    if (!ok) call->ended = true;
    if (op.kind != OpKind::kFinish) AdvanceControl(call);
    over = call->pending == 0 && !call->held;
  }
  if (!over) return;
  calls.erase(call);
  delete call;
}

void GrpcExchangeServer::Impl::Handle(const QueueEvent& event) {
  const Op& op = *static_cast<Op*>(event.tag);
  Call* call = op.call;
  if (call->control) {
    HandleControl(call, op, event.ok);
    return;
  }
  --call->pending;
  switch (op.kind) {
    case OpKind::kAccept:
      if (event.ok) Accepted(call);
      break;
    case OpKind::kMetadata:
      call->ended = !event.ok;
      Advance(call);
      break;
    case OpKind::kRead:
      call->reading = false;
      if (event.ok) {
        Received(call);
      } else {
        call->ended = true;
      }
      Advance(call);
      break;
    case OpKind::kWrite:
      call->writing = false;
      if (!event.ok) {
        call->ended = true;
        call->waiting.clear();
      } else if (!call->waiting.empty()) {
        StartWrite(call, std::move(call->waiting.front()));
        call->waiting.pop_front();
      }
      Advance(call);
      break;
    case OpKind::kFinish:
      break;
  }
  if (call->pending == 0) {
    calls.erase(call);
    delete call;
  }
}

void GrpcExchangeServer::Impl::Run() {
  WaitForCall();
  QueueEvent event;
  bool stopping = false;
  // No operation may begin after the queue's shutdown: first all calls end.
  while (!stopping || !calls.empty()) {
    const PollResult result = PollQueue(
        queue.get(), options.spin_us, absl::InfiniteDuration(), &event);
    if (result != PollResult::kEvent) break;
    if (event.tag == this) {
      stopping = true;
    } else {
      Handle(event);
    }
  }
}

GrpcExchangeServer::GrpcExchangeServer(Options options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}

GrpcExchangeServer::~GrpcExchangeServer() {
  CONCLAVE_CHECK(!impl_->poller.joinable());
}

void GrpcExchangeServer::Register(grpc::ServerBuilder* builder) {
  builder->RegisterAsyncGenericService(&impl_->service);
  impl_->queue = builder->AddCompletionQueue();
}

void GrpcExchangeServer::Start() {
  impl_->poller = std::thread([impl = impl_.get()] { impl->Run(); });
}

void GrpcExchangeServer::Stop() {
  if (impl_->poller.joinable()) {
    grpc::Alarm wake;
    wake.Set(impl_->queue.get(), gpr_now(GPR_CLOCK_MONOTONIC), impl_.get());
    impl_->poller.join();
  }
  impl_->queue->Shutdown();
  QueueEvent event;
  while (PollQueue(impl_->queue.get(), 0, absl::InfiniteDuration(), &event) ==
         PollResult::kEvent) {
  }
}

}  // namespace conclave::transport
