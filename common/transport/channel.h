// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/v1/config.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace conclave::transport {

// The method of the exchange streams, docs/contracts/wire.md.
inline constexpr char kExchangeMethod[] = "/conclave.v1.Exchange/Stream";

// Initial metadata of an accepted stream: the worker's protocol version.
inline constexpr char kProtocolKey[] = "conclave-protocol";

// What a channel carries. Each has a TCP connection of its own.
enum class Traffic { kControl, kExchange, kBulk };

// PEM files, read once.
struct TlsKeys {
  std::string ca, cert, key;
  bool enabled() const { return !ca.empty(); }
};

// Empty keys when `tls` names no file. NotFound names the file.
absl::StatusOr<TlsKeys> ReadTls(const v1::Tls& tls);

// A channel that connects when it is first used, with mutual TLS if there are
// keys; then the peer's certificate must name the host of `address`.
std::shared_ptr<grpc::Channel> Dial(const std::string& address,
                                    const TlsKeys& keys,
                                    Traffic traffic);

std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const TlsKeys& keys);

// Sizes and windows that exchange frames need; of both streams' server.
void ConfigureServer(grpc::ServerBuilder* builder);

// gRPC's words, with a code of ours and `what` before them.
absl::Status FromGrpc(const grpc::Status& status, const std::string& what);

}  // namespace conclave::transport
