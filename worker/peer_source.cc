// SPDX-License-Identifier: Apache-2.0
#include "worker/peer_source.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/delivery/deliver_frame.h"
#include "common/delivery/slice_bytes.h"
#include "common/log.h"
#include "common/parallel_tasks.h"
#include "common/transport/unary_call.h"

namespace conclave::worker {
namespace {

constexpr char kHolds[] = "/conclave.v1.WorkerDelivery/Holds";
constexpr char kFetch[] = "/conclave.v1.WorkerDelivery/Fetch";

std::string Label(const v1::Peer& peer) {
  return absl::StrCat("fetch from ", peer.name(), " (", peer.address(), ")");
}

Buffer Serialised(const google::protobuf::Message& message) {
  const std::string text = message.SerializeAsString();
  return Buffer::Copy(std::as_bytes(std::span(text)));
}

}  // namespace

PeerSource::PeerSource(const std::vector<v1::Peer>& peers,
                       const DialFn& dial,
                       absl::Duration deadline,
                       Clock* clock,
                       const std::atomic<bool>& stop)
    : deadline_(deadline), clock_(clock), stop_(stop) {
  for (const v1::Peer& peer : peers) {
    peers_.push_back(std::make_unique<Peer>());
    peers_.back()->who = peer;
    peers_.back()->channel = dial(peer.address());
  }
}

void PeerSource::Ask(const std::vector<delivery::ContentHash>& hashes) {
  if (hashes.empty()) return;
  v1::HoldsRequest request;
  for (const auto& hash : hashes) request.add_sha256(delivery::ToBytes(hash));
  const auto ask = [&](int64_t i) {
    Peer* peer = peers_[static_cast<size_t>(i)].get();
    v1::HoldsRequest mine = request;
    mine.set_worker_name(peer->who.name());
    const auto reply = transport::CallUnary(peer->channel,
                                            kHolds,
                                            Serialised(mine),
                                            deadline_,
                                            clock_,
                                            stop_,
                                            Label(peer->who));
    v1::HoldsReply held;
    // Whoever cannot be reached from here is no source: nothing is lost.
    if (!reply.ok() ||
        !held.ParseFromArray(reply->data(), static_cast<int>(reply->size())) ||
        held.held_size() != request.sha256_size()) {
      return absl::OkStatus();
    }
    const std::lock_guard<std::mutex> lock(mu_);
    for (size_t h = 0; h < hashes.size(); ++h) {
      if (held.held(static_cast<int>(h))) holders_[hashes[h]].push_back(peer);
    }
    return absl::OkStatus();
  };
  const auto count = static_cast<int32_t>(peers_.size());
  const absl::Status asked = ParallelTasks(count, count, ask);
  static_cast<void>(asked);  // no peer's silence is an error
}

PeerSource::Peer* PeerSource::HolderOf(const delivery::ContentHash& hash) {
  const std::lock_guard<std::mutex> lock(mu_);
  const auto it = holders_.find(hash);
  if (it == holders_.end()) return nullptr;
  std::erase_if(it->second, [](const Peer* peer) { return peer->bad; });
  if (it->second.empty()) return nullptr;
  return it->second[turn_++ % it->second.size()];
}

absl::Status PeerSource::Fetch(const delivery::ContentHash& hash,
                               const checkpoint::SliceLayout& layout,
                               const checkpoint::SliceSpans& out) {
  while (Peer* peer = HolderOf(hash)) {
    const absl::Status status = FetchFrom(*peer, hash, layout, out);
    if (status.ok() || stop_) return status;
    log::Warning(absl::StrCat(std::string(status.message()),
                              "; this load asks others from now on"));
    const std::lock_guard<std::mutex> lock(mu_);
    peer->bad = true;
  }
  return absl::NotFoundError("fetch: no peer has it");
}

absl::Status PeerSource::FetchFrom(const Peer& peer,
                                   const delivery::ContentHash& hash,
                                   const checkpoint::SliceLayout& layout,
                                   const checkpoint::SliceSpans& out) {
  v1::FetchRequest request;
  request.set_sha256(delivery::ToBytes(hash));
  const uint64_t total = layout.bytes();
  for (uint64_t at = 0; at < total; at += request.length()) {
    request.set_offset(at);
    request.set_length(std::min(delivery::kPieceBytes, total - at));
    ASSIGN_OR_RETURN(const Buffer bytes,
                     transport::CallUnary(peer.channel,
                                          kFetch,
                                          Serialised(request),
                                          deadline_,
                                          clock_,
                                          stop_,
                                          Label(peer.who)));
    if (bytes.size() != request.length()) {
      return absl::DataLossError(absl::StrCat(Label(peer.who),
                                              ": sent ",
                                              bytes.size(),
                                              " bytes in place of ",
                                              request.length()));
    }
    delivery::CopyIn(bytes.bytes(), at, out);
  }
  if (delivery::HashOf(layout, out) == hash) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      Label(peer.who), ": sent wrong bytes for ", delivery::Hex(hash)));
}

}  // namespace conclave::worker
