// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/control_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/transport/channel.h"
#include "common/transport/poller.h"
#include "common/version.h"

namespace conclave::cluster {
namespace {

using transport::FromGrpc;
using transport::PollQueue;
using transport::PollResult;

// How soon a load notices that it shall stop.
constexpr absl::Duration kStopCheck = absl::Milliseconds(50);

// Reads the stream of one Assign in this thread, on a queue of its own,
// because a blocking read has no deadline of its own.
class AssignStream {
 public:
  AssignStream(v1::WorkerControl::Stub* stub, const v1::AssignRequest& request)
      : reader_(stub->AsyncAssign(&context_, request, &queue_, nullptr)) {}
  ~AssignStream() {
    context_.TryCancel();
    queue_.Shutdown();
    transport::QueueEvent event;
    while (PollQueue(&queue_, 0, absl::InfiniteDuration(), &event) !=
           PollResult::kShutdown) {
    }
  }

  void StartRead() { reader_->Read(&message_, nullptr); }
  void StartFinish() { reader_->Finish(&status_, nullptr); }
  PollResult Wait(bool* ok) {
    transport::QueueEvent event;
    const PollResult result = PollQueue(&queue_, 0, kStopCheck, &event);
    *ok = event.ok;
    return result;
  }
  const v1::LoadProgress& message() const { return message_; }
  const grpc::Status& status() const { return status_; }

 private:
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  v1::LoadProgress message_;
  grpc::Status status_;
  std::unique_ptr<grpc::ClientAsyncReader<v1::LoadProgress>> reader_;
};

}  // namespace

class ControlClient::Call {
 public:
  Call(ControlClient* client, absl::Duration deadline) : client_(client) {
    context_.set_deadline(absl::ToChronoTime(client->clock_->Now() + deadline));
    const std::lock_guard<std::mutex> lock(client->mu_);
    client->running_ = &context_;
    if (client->cancelled_) context_.TryCancel();
  }
  ~Call() {
    const std::lock_guard<std::mutex> lock(client_->mu_);
    client_->running_ = nullptr;
  }
  grpc::ClientContext* context() { return &context_; }

 private:
  ControlClient* const client_;
  grpc::ClientContext context_;
};

void ControlClient::Cancel() {
  const std::lock_guard<std::mutex> lock(mu_);
  cancelled_ = true;
  if (running_ != nullptr) running_->TryCancel();
}

ControlClient::ControlClient(std::string peer,
                             const std::shared_ptr<grpc::Channel>& channel,
                             Clock* clock)
    : peer_(std::move(peer)),
      clock_(clock),
      stub_(v1::WorkerControl::NewStub(channel)) {}

std::string ControlClient::Label(const std::string& phase) const {
  return absl::StrCat(phase, ": ", peer_);
}

absl::StatusOr<v1::RegisterReply> ControlClient::Register(
    const v1::RegisterRequest& request, absl::Duration deadline) {
  Call call(this, deadline);
  v1::RegisterReply reply;
  const grpc::Status status = stub_->Register(call.context(), request, &reply);
  if (!status.ok()) return FromGrpc(status, Label("connect"));
  if (reply.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(Label("register"),
                     ": the worker (",
                     reply.worker_version(),
                     ") speaks protocol ",
                     reply.protocol_version(),
                     ", this program speaks ",
                     kProtocolVersion,
                     "; run the same version on both sides"));
  }
  if (reply.worker_name() != request.worker_name()) {
    return absl::FailedPreconditionError(
        absl::StrCat(Label("register"),
                     ": the worker there is called ",
                     reply.worker_name(),
                     "; check the addresses in the configuration"));
  }
  return reply;
}

absl::StatusOr<v1::MeasureReply> ControlClient::Measure(
    const v1::MeasureRequest& request, absl::Duration deadline) {
  Call call(this, deadline);
  v1::MeasureReply reply;
  const grpc::Status status = stub_->Measure(call.context(), request, &reply);
  if (!status.ok()) return FromGrpc(status, Label("measure"));
  return reply;
}

absl::Status ControlClient::Assign(const v1::AssignRequest& request,
                                   absl::Duration progress_deadline,
                                   const std::atomic<bool>& stop,
                                   const Progress& progress) {
  AssignStream stream(stub_.get(), request);
  absl::Time last = clock_->Now();
  bool started = false, finishing = false, done = false;
  while (true) {
    bool ok = false;
    if (stream.Wait(&ok) != PollResult::kEvent) {
      if (stop) return absl::CancelledError(Label("assign"));
      if (clock_->Now() - last < progress_deadline) continue;
      return absl::DeadlineExceededError(
          absl::StrCat(Label("assign"),
                       ": no progress for ",
                       absl::FormatDuration(progress_deadline)));
    }
    last = clock_->Now();
    if (finishing) break;
    if (!ok) {
      finishing = true;
      stream.StartFinish();
      continue;
    }
    if (started) {
      done = done || stream.message().done();
      progress(stream.message());
    }
    started = true;
    stream.StartRead();
  }
  if (!stream.status().ok()) return FromGrpc(stream.status(), Label("assign"));
  if (done) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(Label("assign"), ": ended without a last message"));
}

absl::Status ControlClient::Join(const v1::JoinRequest& request,
                                 absl::Duration deadline) {
  Call call(this, deadline);
  v1::JoinReply reply;
  const grpc::Status status = stub_->Join(call.context(), request, &reply);
  return status.ok() ? absl::OkStatus() : FromGrpc(status, Label("join"));
}

absl::StatusOr<v1::HealthReply> ControlClient::Health(uint64_t generation,
                                                      absl::Duration deadline) {
  Call call(this, deadline);
  v1::HealthRequest request;
  request.set_generation(generation);
  v1::HealthReply reply;
  const grpc::Status status = stub_->Health(call.context(), request, &reply);
  if (!status.ok()) return FromGrpc(status, Label("health"));
  return reply;
}

}  // namespace conclave::cluster
