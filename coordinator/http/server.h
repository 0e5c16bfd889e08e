// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "coordinator/http/message.h"

namespace conclave::http {

// Bytes of a request's head; more is 431.
inline constexpr uint32_t kHeaderBytesMax = 16 << 10;
// Bytes that wait for a client that does not read; more ends its reply.
inline constexpr size_t kOutputBytesMax = size_t{4} << 20;

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;          // 0: any free one
  std::string tls_cert;  // PEM files; both: HTTPS
  std::string tls_key;
  int io_threads = 2;
  int64_t body_bytes_max = limits::kBodyBytesDefault;
  int connections_max = limits::kConnectionsMax;
  // For a request to come in, and for a client to take what was written.
  absl::Duration idle = absl::Seconds(60);
  size_t output_bytes_max = kOutputBytesMax;
};

// HTTP/1.1 on Boost.Beast: keep-alive, pipelining, chunked replies. Knows
// nothing of what the requests mean.
class Server {
 public:
  // Binds and listens; the handler runs on the I/O threads and must not block.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerOptions options,
                                                       Handler handler);
  // Stops with no grace. Every Responder must be gone: Stop, then end whoever
  // holds them (the engine), then destroy the server.
  ~Server();

  int port() const;

  // Accepts nothing more, tells every open reply that the server stops, waits
  // at most `grace` for what is under way, then closes the rest and ends the
  // threads. After it the handler is called no more.
  void Stop(absl::Duration grace);

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::http
