// SPDX-License-Identifier: Apache-2.0
#include "common/transport/unary_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/transport/byte_buffers.h"
#include "common/transport/channel.h"
#include "common/transport/poller.h"
#include "grpcpp/generic/generic_stub.h"

namespace conclave::transport {
namespace {

// How soon a call notices that it shall stop.
constexpr absl::Duration kStopCheck = absl::Milliseconds(50);

}  // namespace

absl::StatusOr<Buffer> CallUnary(const std::shared_ptr<grpc::Channel>& channel,
                                 const std::string& method,
                                 Buffer request,
                                 absl::Duration deadline,
                                 Clock* clock,
                                 const std::atomic<bool>& stop,
                                 const std::string& what) {
  const absl::Time end = clock->Now() + deadline;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel);
  auto call = stub.PrepareUnaryCall(
      &context, method, ToByteBuffer(std::move(request)), &queue);
  call->StartCall();
  grpc::ByteBuffer reply;
  grpc::Status status;
  call->Finish(&reply, &status, nullptr);
  QueueEvent event;
  absl::Status ended;
  while (PollQueue(&queue, 0, kStopCheck, &event) == PollResult::kTimeout) {
    if (!ended.ok()) continue;
    if (stop) {
      ended = absl::CancelledError(what);
    } else if (clock->Now() >= end) {
      ended = absl::DeadlineExceededError(absl::StrCat(
          what, ": no answer within ", absl::FormatDuration(deadline)));
    } else {
      continue;
    }
    context.TryCancel();
  }
  queue.Shutdown();
  while (PollQueue(&queue, 0, absl::InfiniteDuration(), &event) !=
         PollResult::kShutdown) {
  }
  if (!ended.ok()) return ended;
  if (!status.ok()) return FromGrpc(status, what);
  return ToBuffer(reply);
}

}  // namespace conclave::transport
