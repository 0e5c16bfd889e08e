// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/server.h"

#include <chrono>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/ssl/context.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/strand.hpp"
#include "common/log.h"
#include "common/status_macros.h"
#include "coordinator/http/connection.h"

namespace conclave::http {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr auto kAcceptRetry = std::chrono::milliseconds(50);

absl::Status LoadTls(const ServerOptions& options, asio::ssl::context* tls) {
  ErrorCode error;
  tls->set_options(
      asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
          asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
          asio::ssl::context::no_tlsv1_1,
      error);
  tls->use_certificate_chain_file(options.tls_cert, error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tls.cert: cannot read ", options.tls_cert, ": ", error.message()));
  }
  tls->use_private_key_file(options.tls_key, asio::ssl::context::pem, error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tls.key: cannot read ", options.tls_key, ": ", error.message()));
  }
  return absl::OkStatus();
}

}  // namespace

struct Server::Impl {
  asio::io_context io;
  asio::ssl::context tls{asio::ssl::context::tls_server};
  Tcp::acceptor acceptor{asio::make_strand(io)};
  asio::steady_timer retry{acceptor.get_executor()};
  std::shared_ptr<ConnectionShared> shared =
      std::make_shared<ConnectionShared>();
  std::vector<std::thread> threads;
  int port = 0;

  absl::Status Listen() {
    const ServerOptions& options = shared->options;
    const std::string place = absl::StrCat(options.host, ":", options.port);
    ErrorCode error;
    Tcp::resolver resolver(io);
    const auto found =
        resolver.resolve(options.host, std::to_string(options.port), error);
    if (error || found.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "coordinator.listen: cannot resolve ", place, ": ", error.message()));
    }
    const Tcp::endpoint endpoint = *found.begin();
    acceptor.open(endpoint.protocol(), error);
    if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error)
      acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("coordinator.listen: cannot listen on ",
                       place,
                       ": ",
                       error.message(),
                       "; choose another with --listen HOST:PORT"));
    }
    port = acceptor.local_endpoint(error).port();
    return absl::OkStatus();
  }

  void Accept() {
    acceptor.async_accept(asio::any_io_executor(asio::make_strand(io)),
                          [this](ErrorCode error, Tcp::socket socket) {
                            if (!acceptor.is_open()) return;
                            if (!error) {
                              StartConnection(std::move(socket), shared);
                              return Accept();
                            }
                            // Out of descriptors, most likely: not again at
                            // once.
                            retry.expires_after(kAcceptRetry);
                            retry.async_wait([this](ErrorCode e) {
                              if (!e && acceptor.is_open()) Accept();
                            });
                          });
  }

  void Work() {
    for (;;) {
      try {
        io.run();
        return;
      } catch (const std::exception& e) {
        log::Error(absl::StrCat("http: ", e.what()));
      }
    }
  }

  void EndConnections(bool at_once, absl::Duration wait) {
    std::unique_lock lock(shared->mutex);
    shared->stopping = true;
    for (auto& [key, end] : shared->open) end(at_once);
    shared->all_closed.wait_for(lock, absl::ToChronoNanoseconds(wait), [this] {
      return shared->open.empty();
    });
  }

  void Stop(absl::Duration grace) {
    if (threads.empty()) return;
    asio::post(acceptor.get_executor(), [this] {
      ErrorCode ignored;
      acceptor.close(ignored);
      retry.cancel();
    });
    EndConnections(false, grace);
    EndConnections(true, absl::Seconds(1));
    io.stop();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
};

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options,
                                                      Handler handler) {
  auto impl = std::make_unique<Impl>();
  impl->shared->options = std::move(options);
  impl->shared->handler = std::move(handler);
  if (!impl->shared->options.tls_cert.empty()) {
    RETURN_IF_ERROR(LoadTls(impl->shared->options, &impl->tls));
    impl->shared->tls = &impl->tls;
  }
  RETURN_IF_ERROR(impl->Listen());
  Impl* raw = impl.get();
  raw->Accept();
  for (int i = 0; i < raw->shared->options.io_threads; ++i) {
    raw->threads.emplace_back([raw] { raw->Work(); });
  }
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() { impl_->Stop(absl::ZeroDuration()); }

int Server::port() const { return impl_->port; }

void Server::Stop(absl::Duration grace) { impl_->Stop(grace); }

}  // namespace conclave::http
