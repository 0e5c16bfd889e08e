// SPDX-License-Identifier: Apache-2.0
#include "common/transport/channel.h"

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "grpc/support/log.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace conclave::transport {
namespace {

// HTTP/2 window per stream. gRPC begins with 64 KiB, so that the first large
// frame would stop and wait for the other side once per window.
constexpr int kLookaheadBytes = 16 << 20;
// Largest HTTP/2 frame: fewer headers per bulk frame.
constexpr int kHttp2FrameBytes = 4 << 20;

// gRPC's own lines say nothing to an operator that our errors do not say.
void QuietGrpc() {
  static const bool once = [] {
    gpr_set_log_function([](gpr_log_func_args* args) {
      log::Debug(absl::StrCat("grpc: ", args->message));
    });
    return true;
  }();
  static_cast<void>(once);
}

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file || text.str().find("-----BEGIN") == std::string::npos) {
    return absl::NotFoundError(
        absl::StrCat("tls: ", path, " cannot be read or holds no PEM block"));
  }
  return text.str();
}

}  // namespace

absl::StatusOr<TlsKeys> ReadTls(const v1::Tls& tls) {
  TlsKeys keys;
  if (tls.ca().empty() && tls.cert().empty() && tls.key().empty()) return keys;
  ASSIGN_OR_RETURN(keys.ca, ReadPem(tls.ca()));
  ASSIGN_OR_RETURN(keys.cert, ReadPem(tls.cert()));
  ASSIGN_OR_RETURN(keys.key, ReadPem(tls.key()));
  return keys;
}

std::shared_ptr<grpc::Channel> Dial(const std::string& address,
                                    const TlsKeys& keys,
                                    Traffic traffic) {
  QuietGrpc();
  grpc::ChannelArguments args;
  // Without it, channels to one address share a TCP connection, and a small
  // frame waits behind a large one.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  if (traffic != Traffic::kControl) {
    args.SetMaxReceiveMessageSize(static_cast<int>(limits::kFrameBytesMax));
    args.SetMaxSendMessageSize(static_cast<int>(limits::kFrameBytesMax));
    args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kLookaheadBytes);
    args.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kHttp2FrameBytes);
  }
  if (!keys.enabled()) {
    return grpc::CreateCustomChannel(
        address, grpc::InsecureChannelCredentials(), args);
  }
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = keys.ca;
  options.pem_cert_chain = keys.cert;
  options.pem_private_key = keys.key;
  return grpc::CreateCustomChannel(
      address, grpc::SslCredentials(options), args);
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentials(
    const TlsKeys& keys) {
  if (!keys.enabled()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = keys.ca;
  options.pem_key_cert_pairs.push_back({keys.key, keys.cert});
  return grpc::SslServerCredentials(options);
}

void ConfigureServer(grpc::ServerBuilder* builder) {
  QuietGrpc();
  builder->SetMaxReceiveMessageSize(static_cast<int>(limits::kFrameBytesMax));
  builder->SetMaxSendMessageSize(static_cast<int>(limits::kFrameBytesMax));
  builder->AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES,
                              kLookaheadBytes);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kHttp2FrameBytes);
  // A second worker on the same port would take half of the connections.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

absl::Status FromGrpc(const grpc::Status& status, const std::string& what) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      absl::StrCat(what, ": ", status.error_message()));
}

}  // namespace conclave::transport
