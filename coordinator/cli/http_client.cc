// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/http_client.h"

#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/config/cluster_config.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/version.h"

namespace conclave::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kPoll = std::chrono::milliseconds(100);
constexpr size_t kPieceBytes = 16384;

// One exchange on one io_context, driven by Wait so that a stop is seen.
class Exchange {
 public:
  explicit Exchange(const HttpCall& call) : call_(call), stream_(context_) {}

  absl::StatusOr<HttpResult> Run(
      const std::function<void(std::string_view)>& on_data) {
    RETURN_IF_ERROR(Connect());
    RETURN_IF_ERROR(SendRequest());
    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    Begin();
    http::async_read_header(
        stream_, buffer, parser, [this](error_code e, size_t) { Done(e); });
    RETURN_IF_ERROR(Wait("waiting for the reply"));
    HttpResult result;
    result.status = static_cast<int>(parser.get().result_int());
    const bool good = result.status / 100 == 2;
    std::array<char, kPieceBytes> piece;
    while (!stopped_ && !parser.is_done()) {
      parser.get().body().data = piece.data();
      parser.get().body().size = piece.size();
      Begin();
      http::async_read_some(
          stream_, buffer, parser, [this](error_code e, size_t) {
            Done(e == http::error::need_buffer ? error_code() : e);
          });
      RETURN_IF_ERROR(Wait("reading the reply"));
      const std::string_view text(piece.data(),
                                  piece.size() - parser.get().body().size);
      if (good && on_data != nullptr) {
        on_data(text);
      } else if (result.body.size() < limits::kConfigFileBytesMax) {
        result.body.append(text);
      }
    }
    result.stopped = stopped_;
    return result;
  }

 private:
  void Done(error_code e) {
    error_ = e;
    done_ = true;
  }

  // Before every operation: the stream's timer may not be set under one.
  void Begin() {
    stream_.expires_after(absl::ToChronoMilliseconds(call_.idle_timeout));
    done_ = false;
  }

  absl::Status Wait(const char* phase) {
    context_.restart();
    while (!done_) {
      context_.run_for(kPoll);
      if (!done_ && call_.stop != nullptr && call_.stop()) {
        stopped_ = true;
        stream_.cancel();
        context_.run();
        return absl::OkStatus();
      }
      if (!done_ && context_.stopped()) context_.restart();
    }
    if (!error_) return absl::OkStatus();
    if (error_ == beast::error::timeout) {
      return absl::DeadlineExceededError(
          absl::StrCat(call_.url,
                       ": nothing came for ",
                       absl::FormatDuration(call_.idle_timeout),
                       " while ",
                       phase));
    }
    return absl::UnavailableError(
        absl::StrCat(call_.url,
                     ": ",
                     error_.message(),
                     " while ",
                     phase,
                     "; is the server running? (conclave serve)"));
  }

  absl::Status Connect() {
    std::string_view address = call_.url;
    if (address.starts_with("https://")) {
      return absl::UnimplementedError(
          absl::StrCat(call_.url, ": this client speaks http:// only"));
    }
    if (address.starts_with("http://")) address.remove_prefix(7);
    address = address.substr(0, address.find('/'));
    ASSIGN_OR_RETURN(const config::HostPort to, config::ParseHostPort(address));
    host_ = std::string(address);
    asio::ip::tcp::resolver resolver(context_);
    error_code error;
    const auto endpoints =
        resolver.resolve(to.host, std::to_string(to.port), error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat(call_.url, ": ", error.message()));
    }
    Begin();
    stream_.async_connect(endpoints,
                          [this](error_code e, const auto&) { Done(e); });
    return Wait("connecting");
  }

  absl::Status SendRequest() {
    request_.method_string(call_.method);
    request_.target(call_.path);
    request_.version(11);
    request_.set(http::field::host, host_);
    request_.set(http::field::user_agent,
                 absl::StrCat("conclave/", std::string(Version())));
    if (!call_.api_key.empty()) {
      request_.set(http::field::authorization,
                   absl::StrCat("Bearer ", call_.api_key));
    }
    if (!call_.body.empty()) {
      request_.set(http::field::content_type, "application/json");
      request_.body() = call_.body;
    }
    request_.prepare_payload();
    Begin();
    http::async_write(
        stream_, request_, [this](error_code e, size_t) { Done(e); });
    return Wait("sending the request");
  }

  const HttpCall& call_;
  asio::io_context context_;
  beast::tcp_stream stream_;
  http::request<http::string_body> request_;
  std::string host_;
  error_code error_;
  bool done_ = false;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<HttpResult> Call(
    const HttpCall& call,
    const std::function<void(std::string_view piece)>& on_data) {
  Exchange exchange(call);
  return exchange.Run(on_data);
}

}  // namespace conclave::cli
