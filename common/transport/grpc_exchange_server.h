// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "common/transport/transport.h"
#include "grpcpp/server_builder.h"

namespace conclave::transport {

// The worker's side of the exchange streams (docs/contracts/wire.md). One
// thread polls the queue, calls the handler and writes its answer.
class GrpcExchangeServer {
 public:
  struct Options {
    // The thread polls so long after the last event, then it blocks.
    int32_t spin_us = 50;
    FrameHandler handler;
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
