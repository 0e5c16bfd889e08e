// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/connection.h"

#include <chrono>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "boost/asio/post.hpp"
#include "boost/asio/ssl/stream.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/write.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/read.hpp"
#include "boost/beast/http/string_body.hpp"
#include "coordinator/http/openai_reply.h"
#include "coordinator/http/wire_text.h"

namespace conclave::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using Tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

// What is read at once, beside a request's head.
constexpr size_t kReadBytesMax = 64 << 10;
// After an error, how much of what the client still sends is read and dropped
// before the connection is closed, so that the client sees the error.
constexpr size_t kDrainBytesMax = size_t{64} << 20;
constexpr absl::Duration kDrainTime = absl::Seconds(2);

// One client: read a request, hand it over, write the reply, again. Everything
// runs on the socket's strand.
template <typename Stream>
class Connection : public std::enable_shared_from_this<Connection<Stream>> {
 public:
  Connection(Stream stream,
             std::shared_ptr<ConnectionShared> shared,
             uint64_t key)
      : stream_(std::move(stream)),
        timer_(stream_.get_executor()),
        buffer_(kReadBytesMax + kHeaderBytesMax),
        shared_(std::move(shared)),
        key_(key) {}

  void Run() {
    if (closed_) return;
    if constexpr (!std::is_same_v<Stream, Tcp::socket>) {
      StartTimer(shared_->options.idle);
      stream_.async_handshake(asio::ssl::stream_base::server,
                              [self = this->shared_from_this()](ErrorCode e) {
                                e ? self->Close() : self->ReadRequest();
                              });
    } else {
      ReadRequest();
    }
  }

  // The server stops.
  void Shutdown(bool at_once) {
    stopping_ = true;
    keep_alive_ = false;
    if (at_once || (!open_ && out_.empty() && writing_.empty())) {
      return Close();
    }
    Tell(absl::UnavailableError("the server is shutting down"));
  }

 private:
  using Parser = beast::http::request_parser<beast::http::string_body>;

  // --- reading -------------------------------------------------------------

  void ReadRequest() {
    if (closed_) return;
    if (stopping_) return Close();
    StartTimer(shared_->options.idle);
    if (watching_) return;  // comes back when the pending read ends
    parser_.emplace();
    parser_->header_limit(kHeaderBytesMax);
    parser_->body_limit(static_cast<uint64_t>(shared_->options.body_bytes_max));
    beast::http::async_read_header(
        stream_,
        buffer_,
        *parser_,
        [self = this->shared_from_this()](ErrorCode e, size_t) {
          self->OnHeader(e);
        });
  }

  void OnHeader(ErrorCode error) {
    if (closed_) return;
    if (error) return OnReadError(error);
    version_11_ = parser_->get().version() >= 11;
    if (beast::iequals(parser_->get()[beast::http::field::expect],
                       "100-continue")) {
      Queue("HTTP/1.1 100 Continue\r\n\r\n");
    }
    beast::http::async_read(stream_,
                            buffer_,
                            *parser_,
                            [self = this->shared_from_this()](
                                ErrorCode e, size_t) { self->OnRequest(e); });
  }

  void OnRequest(ErrorCode error) {
    if (closed_) return;
    if (error) return OnReadError(error);
    StopTimer();
    auto message = parser_->release();
    keep_alive_ = message.keep_alive() && !stopping_;
    Request request;
    request.method = std::string(message.method_string());
    const std::string target(message.target());
    request.path = target.substr(0, target.find('?'));
    request.authorization =
        std::string(message[beast::http::field::authorization]);
    request.body = std::move(message.body());
    open_ = true;
    ++exchange_;
    shared_->handler(std::move(request), MakeResponder());
    Watch();
  }

  void OnReadError(ErrorCode error) {
    namespace h = beast::http;
    if (error == h::error::body_limit) {
      return Refuse(
          413,
          absl::StrCat(
              "body: more than ", shared_->options.body_bytes_max, " bytes"));
    }
    if (error == h::error::header_limit || error == h::error::buffer_overflow) {
      return Refuse(
          431, absl::StrCat("header: more than ", kHeaderBytesMax, " bytes"));
    }
    const ErrorCode eof = h::error::end_of_stream;
    if (error.category() != eof.category() ||
        error == h::error::end_of_stream ||
        error == h::error::partial_message) {
      return Close();
    }
    Refuse(400, absl::StrCat("request: no HTTP: ", error.message()));
  }

  void Refuse(int status, const std::string& message) {
    keep_alive_ = false;
    open_ = true;
    ++exchange_;
    Response response;
    response.status = status;
    response.body = ErrorJson(absl::InvalidArgumentError(message), status);
    Send(std::move(response));
  }

  // While a request is answered, waits for the news that the client has gone.
  // Once a pipelined request has come instead, a failing write must tell.
  void Watch() {
    if (closed_ || watching_ || buffer_.size() > 0) return;
    watching_ = true;
    stream_.async_read_some(
        buffer_.prepare(4096),
        [self = this->shared_from_this()](ErrorCode e, size_t bytes) {
          self->OnWatch(e, bytes);
        });
  }

  void OnWatch(ErrorCode error, size_t bytes) {
    watching_ = false;
    if (closed_) return;
    if (error) return Gone("the client closed the connection");
    buffer_.commit(bytes);
    if (draining_) {
      drained_ += buffer_.size();
      buffer_.consume(buffer_.size());
      return drained_ > kDrainBytesMax ? Close() : Watch();
    }
    if (open_ || !out_.empty() || !writing_.empty()) return;
    ReadRequest();
  }

  // --- answering -----------------------------------------------------------

  // Wraps a member function so that it does nothing for a request that is over.
  template <typename Function>
  auto ForThis(Function function) {
    return [self = this->shared_from_this(), exchange = exchange_, function](
               auto... arguments) {
      if (self->closed_ || !self->open_ || self->exchange_ != exchange) return;
      function(*self, std::move(arguments)...);
    };
  }

  Responder MakeResponder() {
    Responder out;
    out.post = [self = this->shared_from_this()](std::function<void()> work) {
      asio::post(self->stream_.get_executor(), std::move(work));
    };
    out.send = ForThis([](Connection& self, Response response) {
      self.Send(std::move(response));
    });
    out.begin = ForThis([](Connection& self, std::string content_type) {
      self.streaming_ = true;
      if (!self.version_11_) self.keep_alive_ = false;
      self.Queue(StreamHead(content_type, self.version_11_, self.keep_alive_));
    });
    out.write = ForThis([](Connection& self, std::string data) {
      self.Queue(self.version_11_ ? ChunkBytes(data) : std::move(data));
    });
    out.end = ForThis([](Connection& self) {
      if (self.version_11_) self.Queue(std::string(LastChunk()));
      self.EndReply();
    });
    out.on_gone =
        ForThis([](Connection& self, std::function<void(absl::Status)> call) {
          self.on_gone_ = std::move(call);
        });
    return out;
  }

  void Send(Response response) {
    Queue(ResponseBytes(response, keep_alive_));
    EndReply();
  }

  void EndReply() {
    open_ = false;
    streaming_ = false;
    on_gone_ = nullptr;
    AfterWrite();
  }

  void Queue(std::string bytes) {
    if (closed_) return;
    out_ += bytes;
    if (streaming_ && out_.size() > shared_->options.output_bytes_max) {
      return Gone("the client reads too slowly");
    }
    Pump();
  }

  void Pump() {
    if (closed_ || out_.empty() || !writing_.empty()) return;
    writing_.swap(out_);
    StartTimer(shared_->options.idle);
    asio::async_write(stream_,
                      asio::buffer(writing_),
                      [self = this->shared_from_this()](ErrorCode e, size_t) {
                        self->writing_.clear();
                        if (self->closed_) return;
                        if (e)
                          return self->Gone("the client closed the connection");
                        if (self->open_) self->StopTimer();
                        self->Pump();
                        self->AfterWrite();
                      });
  }

  // Goes on when everything of a finished reply is written.
  void AfterWrite() {
    if (closed_ || open_ || !out_.empty() || !writing_.empty()) return;
    if (exchange_ == answered_) return;  // only "100 Continue" went out
    answered_ = exchange_;
    if (keep_alive_ && !stopping_) return ReadRequest();
    Drain();
  }

  // Says that nothing more comes, and waits for the client to close.
  void Drain() {
    ErrorCode ignored;
    stream_.lowest_layer().shutdown(Tcp::socket::shutdown_send, ignored);
    draining_ = true;
    StartTimer(kDrainTime);
    buffer_.consume(buffer_.size());
    Watch();
  }

  // --- ending --------------------------------------------------------------

  void Tell(const absl::Status& status) {
    if (on_gone_ == nullptr) return;
    auto call = std::move(on_gone_);
    on_gone_ = nullptr;
    call(status);
  }

  void Gone(const char* why) {
    auto call = std::move(on_gone_);
    on_gone_ = nullptr;
    Close();
    if (call != nullptr) call(absl::CancelledError(why));
  }

  void Close() {
    if (closed_) return;
    closed_ = true;
    open_ = false;
    on_gone_ = nullptr;
    StopTimer();
    ErrorCode ignored;
    stream_.lowest_layer().close(ignored);
    const std::lock_guard lock(shared_->mutex);
    shared_->open.erase(key_);
    if (shared_->open.empty()) shared_->all_closed.notify_all();
  }

  void StartTimer(absl::Duration duration) {
    ++timer_epoch_;
    timer_.expires_after(absl::ToChronoNanoseconds(duration));
    timer_.async_wait(
        [self = this->shared_from_this(), epoch = timer_epoch_](ErrorCode e) {
          if (e || epoch != self->timer_epoch_) return;
          self->Gone("the client was idle for too long");
        });
  }

  void StopTimer() {
    ++timer_epoch_;
    timer_.cancel();
  }

  Stream stream_;
  asio::steady_timer timer_;
  uint64_t timer_epoch_ = 0;
  beast::flat_buffer buffer_;
  std::shared_ptr<ConnectionShared> shared_;
  std::optional<Parser> parser_;
  const uint64_t key_;
  std::string out_;      // waits
  std::string writing_;  // is being written
  std::function<void(absl::Status)> on_gone_;
  uint64_t exchange_ = 0;  // number of the current request
  uint64_t answered_ = 0;  // last one whose reply is all written
  size_t drained_ = 0;
  bool open_ = false;  // a request is being answered
  bool streaming_ = false;
  bool watching_ = false;  // a read ahead is pending
  bool draining_ = false;
  bool keep_alive_ = false;
  bool version_11_ = true;
  bool stopping_ = false;
  bool closed_ = false;
};

template <typename Stream>
void Launch(Stream stream, const std::shared_ptr<ConnectionShared>& shared) {
  auto executor = stream.get_executor();
  const std::lock_guard lock(shared->mutex);
  if (shared->stopping) return;
  const uint64_t key = shared->next_key++;
  auto connection =
      std::make_shared<Connection<Stream>>(std::move(stream), shared, key);
  shared->open[key] = [executor, weak = std::weak_ptr(connection)](bool now) {
    asio::post(executor, [weak, now] {
      if (auto strong = weak.lock()) strong->Shutdown(now);
    });
  };
  asio::post(executor, [connection] { connection->Run(); });
}

}  // namespace

void StartConnection(Tcp::socket socket,
                     const std::shared_ptr<ConnectionShared>& shared) {
  ErrorCode ignored;
  socket.set_option(Tcp::no_delay(true), ignored);
  size_t open = 0;
  {
    const std::lock_guard lock(shared->mutex);
    open = shared->open.size();
  }
  if (open >= static_cast<size_t>(shared->options.connections_max)) {
    Response busy;
    busy.status = 503;
    busy.headers.emplace_back("Retry-After", "1");
    busy.body = ErrorJson(
        absl::UnavailableError("too many connections; try again"), 503);
    // Into an empty send buffer: does not block.
    if (shared->tls == nullptr) {
      asio::write(socket, asio::buffer(ResponseBytes(busy, false)), ignored);
    }
    return;
  }
  if (shared->tls == nullptr) return Launch(std::move(socket), shared);
  Launch(asio::ssl::stream<Tcp::socket>(std::move(socket), *shared->tls),
         shared);
}

}  // namespace conclave::http
