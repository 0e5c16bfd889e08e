// SPDX-License-Identifier: Apache-2.0
#include "worker/peer_service.h"

#include "absl/strings/str_cat.h"
#include "common/delivery/content_hash.h"
#include "common/delivery/deliver_frame.h"
#include "conclave/v1/delivery.pb.h"

namespace conclave::worker {
namespace {

constexpr size_t kCallsMax = 256;

}  // namespace

PeerService::PeerService(std::string name, const ExpertStore* store)
    : name_(std::move(name)), store_(store), calls_(kCallsMax) {
  thread_ = std::thread([this] {
    while (auto call = calls_.Pop(absl::InfiniteDuration())) (*call)();
  });
}

PeerService::~PeerService() {
  calls_.Close();
  thread_.join();
}

void PeerService::Handle(const std::string& method,
                         std::string request,
                         transport::Responder respond) {
  const bool holds = method == "/conclave.v1.WorkerDelivery/Holds";
  if (!holds && method != "/conclave.v1.WorkerDelivery/Fetch") {
    return respond.finish(
        absl::UnimplementedError(absl::StrCat("there is no method ", method)));
  }
  const absl::Status status =
      calls_.Push([this, holds, request = std::move(request), respond] {
        holds ? AnswerHolds(request, respond) : AnswerFetch(request, respond);
      });
  if (!status.ok()) respond.finish(status);
}

void PeerService::AnswerHolds(const std::string& request,
                              const transport::Responder& respond) const {
  v1::HoldsRequest message;
  if (!message.ParseFromString(request)) {
    return respond.finish(
        absl::InvalidArgumentError("holds: the request cannot be parsed"));
  }
  // An address may lead to another worker than the one that was meant.
  const bool meant = name_.empty() || message.worker_name() == name_;
  v1::HoldsReply reply;
  for (const std::string& bytes : message.sha256()) {
    const auto hash = delivery::HashFromBytes(bytes);
    reply.add_held(meant && hash.has_value() && store_->Holds(*hash));
  }
  respond.send(reply.SerializeAsString());
  respond.finish(absl::OkStatus());
}

void PeerService::AnswerFetch(const std::string& request,
                              const transport::Responder& respond) const {
  v1::FetchRequest message;
  const bool parsed = message.ParseFromString(request);
  const auto hash = delivery::HashFromBytes(message.sha256());
  if (!parsed || !hash.has_value() ||
      message.length() > delivery::kPieceBytes) {
    return respond.finish(
        absl::InvalidArgumentError("fetch: the request cannot be parsed"));
  }
  const auto bytes =
      store_->ReadHeld(*hash, message.offset(), message.length());
  if (!bytes.ok()) return respond.finish(bytes.status());
  respond.send(
      std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size()));
  respond.finish(absl::OkStatus());
}

}  // namespace conclave::worker
