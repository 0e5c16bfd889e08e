// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/transport/transport.h"
#include "grpcpp/channel.h"

namespace conclave::transport {

// The coordinator's side of the exchange streams (docs/contracts/wire.md): one
// completion queue, polled by the thread that calls Receive.
//
// Send and Receive: one thread. Connect, Disconnect, LinkStatus and Pump: any
// thread.
class GrpcTransport final : public Transport {
 public:
  struct Options {
    // Receive polls so long before it blocks; 0: blocks at once.
    int32_t spin_us = 50;
    Clock* clock = nullptr;
  };
  explicit GrpcTransport(const Options& options);
  // Cancels all streams and waits until gRPC has let go of them.
  ~GrpcTransport() override;

  // Both channels lead to the worker; they are connections of their own.
  struct Peer {
    std::string name;  // "w0 (127.0.0.1:7001)"
    std::shared_ptr<grpc::Channel> exchange;
    std::shared_ptr<grpc::Channel> bulk;
  };
  // Opens the streams of a new link in place of the old one, if any. Does not
  // wait: LinkStatus tells when the worker has accepted them.
  void Connect(WorkerId id, Peer peer);

  // Drops the link. Frames on their way are lost without a Delivery.
  void Disconnect(WorkerId id, const absl::Status& reason);

  // OK when both streams are open; else Unavailable, with peer and phase.
  absl::Status LinkStatus(WorkerId id) const;
  // Tells a link that broke from one whose streams are not open yet.
  bool IsBroken(WorkerId id) const;

  // Lets streams open and notices broken ones while no thread is in Receive.
  // Does not block.
  void Pump();

  absl::Status Send(WorkerId to, Buffer frame) override;
  absl::StatusOr<Delivery> Receive(absl::Time deadline) override;
  std::string PeerName(WorkerId worker) const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::transport
