// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/transport/transport.h"
#include "grpcpp/server_builder.h"

namespace conclave::transport {

// Answers one call of another method. Thread-safe; copies share the call.
struct Responder {
  std::function<void(std::string message)> send;
  std::function<void(const absl::Status& status)> finish;  // exactly once
};

// Other methods of the port, as serialised protobuf. Called by the poller, so
// it must be quick; may answer later and from any thread.
using CallHandler = std::function<void(
    const std::string& method, std::string request, Responder respond)>;

// The worker's side of the exchange streams (docs/contracts/wire.md). One
// thread polls the queue, calls the handler and writes its answer. The control
// plane is served by the same queue: gRPC's other server forms poll in threads
// of their own, which take events from the poller and cost 20 us a frame.
class GrpcExchangeServer {
 public:
  struct Options {
    // The thread polls so long after the last event, then it blocks.
    int32_t spin_us = 50;
    FrameHandler handler;
    CallHandler control = nullptr;  // may be null
  };
  explicit GrpcExchangeServer(Options options);
  // Stop must have been called if Start was.
  ~GrpcExchangeServer();

  // Before the server is built.
  void Register(grpc::ServerBuilder* builder);
  // After it was built: begins to accept streams.
  void Start();
  // After the grpc::Server was shut down; joins the thread.
  void Stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::transport
