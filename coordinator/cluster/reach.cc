// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/reach.h"

#include <fcntl.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/config/cluster_config.h"

namespace conclave::cluster {
namespace {

struct Endpoint {
  sockaddr_storage address{};
  socklen_t size = 0;
  int family = AF_UNSPEC;
};

// A lookup has no deadline of its own: it runs in a thread that nobody joins,
// which keeps what it writes to alive.
struct Lookup {
  std::mutex mu;
  std::condition_variable changed;
  bool done = false;
  int error = 0;
  std::vector<Endpoint> found;
};

void RunLookup(const std::string& host, int port, Lookup* lookup) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error =
      getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &list);
  const std::lock_guard<std::mutex> lock(lookup->mu);
  lookup->error = error;
  for (const addrinfo* one = list; one != nullptr; one = one->ai_next) {
    Endpoint& to = lookup->found.emplace_back();
    std::memcpy(&to.address, one->ai_addr, one->ai_addrlen);
    to.size = one->ai_addrlen;
    to.family = one->ai_family;
  }
  if (list != nullptr) freeaddrinfo(list);
  lookup->done = true;
  lookup->changed.notify_all();
}

ReachResult Resolve(const std::string& address,
                    absl::Duration deadline,
                    std::vector<Endpoint>* out) {
  const auto parsed = config::ParseHostPort(address);
  if (!parsed.ok()) {
    return {Reach::kBadName, std::string(parsed.status().message())};
  }
  auto lookup = std::make_shared<Lookup>();
  std::thread([lookup, host = parsed->host, port = parsed->port] {
    RunLookup(host, port, lookup.get());
  }).detach();
  std::unique_lock<std::mutex> lock(lookup->mu);
  const bool done = lookup->changed.wait_for(
      lock, absl::ToChronoNanoseconds(deadline), [&] { return lookup->done; });
  if (!done) return {Reach::kBadName, "the name service does not answer"};
  if (lookup->error != 0 || lookup->found.empty()) {
    return {Reach::kBadName, gai_strerror(lookup->error)};
  }
  *out = lookup->found;
  return {};
}

// A non-blocking socket that closes itself.
class Socket {
 public:
  explicit Socket(int family) : fd_(socket(family, SOCK_STREAM, 0)) {
    if (fd_ >= 0) fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL, 0) | O_NONBLOCK);
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

  // False when the time is over.
  bool Wait(short events, absl::Time until) const {
    pollfd one{.fd = fd_, .events = events, .revents = 0};
    const auto left = absl::ToInt64Milliseconds(until - RealClock()->Now());
    return left > 0 && poll(&one, 1, static_cast<int>(left)) > 0;
  }

 private:
  const int fd_;
};

ReachResult OfError(int error) {
  const std::string words = std::strerror(error);
  switch (error) {
    case ECONNREFUSED:
      return {Reach::kRefused, words};
    case ETIMEDOUT:
      return {Reach::kNoAnswer, words};
    default:
      return {Reach::kNoRoute, words};
  }
}

ReachResult Connect(const Socket& socket,
                    const Endpoint& to,
                    absl::Time until) {
  if (connect(socket.fd(),
              reinterpret_cast<const sockaddr*>(&to.address),
              to.size) == 0) {
    return {};
  }
  if (errno != EINPROGRESS) return OfError(errno);
  if (!socket.Wait(POLLOUT, until)) {
    return {Reach::kNoAnswer, "no answer in time"};
  }
  int error = 0;
  socklen_t size = sizeof(error);
  getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error == 0 ? ReachResult{} : OfError(error);
}

// The first endpoint that accepts; else what the first one said.
ReachResult ConnectAny(const std::string& address,
                       absl::Duration deadline,
                       std::unique_ptr<Socket>* out) {
  const absl::Time until = RealClock()->Now() + deadline;
  std::vector<Endpoint> endpoints;
  ReachResult result = Resolve(address, deadline, &endpoints);
  if (result.reach != Reach::kOk) return result;
  for (size_t i = 0; i < endpoints.size(); ++i) {
    *out = std::make_unique<Socket>(endpoints[i].family);
    const ReachResult one = Connect(**out, endpoints[i], until);
    if (one.reach == Reach::kOk) return one;
    if (i == 0) result = one;
  }
  return result;
}

struct Free {
  void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
  void operator()(SSL* p) const { SSL_free(p); }
  void operator()(BIO* p) const { BIO_free(p); }
  void operator()(X509* p) const { X509_free(p); }
  void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
};
template <typename T>
using Held = std::unique_ptr<T, Free>;

Held<BIO> Memory(const std::string& text) {
  return Held<BIO>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Our certificate, its key and whom we trust.
void UseKeys(const transport::TlsKeys& keys, SSL_CTX* context) {
  const Held<BIO> ca = Memory(keys.ca), cert = Memory(keys.cert),
                  key = Memory(keys.key);
  while (const Held<X509> one{
      PEM_read_bio_X509(ca.get(), nullptr, nullptr, nullptr)}) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), one.get());
  }
  if (const Held<X509> own{
          PEM_read_bio_X509(cert.get(), nullptr, nullptr, nullptr)}) {
    SSL_CTX_use_certificate(context, own.get());
  }
  if (const Held<EVP_PKEY> own{
          PEM_read_bio_PrivateKey(key.get(), nullptr, nullptr, nullptr)}) {
    SSL_CTX_use_PrivateKey(context, own.get());
  }
}

std::string TlsError() {
  const unsigned long code = ERR_peek_last_error();
  const char* words = ERR_reason_error_string(code);
  ERR_clear_error();
  return words == nullptr ? "the connection was closed" : words;
}

constexpr int kTooLate = -100;

// 1: done; 0 or less: failed; kTooLate.
template <typename Operation>
int Drive(const Socket& socket, SSL* ssl, absl::Time until, Operation op) {
  while (true) {
    const int result = op();
    if (result > 0) return result;
    const int error = SSL_get_error(ssl, result);
    const bool read = error == SSL_ERROR_WANT_READ;
    if (!read && error != SSL_ERROR_WANT_WRITE) return std::min(result, 0);
    if (!socket.Wait(read ? POLLIN : POLLOUT, until)) return kTooLate;
  }
}

}  // namespace

ReachResult ReachPort(const std::string& address, absl::Duration deadline) {
  std::unique_ptr<Socket> socket;
  return ConnectAny(address, deadline, &socket);
}

ReachResult ExplainSilence(const std::string& address,
                           const transport::TlsKeys& keys,
                           absl::Duration deadline) {
  const absl::Time until = RealClock()->Now() + deadline;
  std::unique_ptr<Socket> socket;
  const ReachResult reached = ConnectAny(address, deadline, &socket);
  if (reached.reach != Reach::kOk) return reached;
  const Held<SSL_CTX> context(SSL_CTX_new(TLS_client_method()));
  if (keys.enabled()) UseKeys(keys, context.get());
  const Held<SSL> ssl(SSL_new(context.get()));
  SSL_set_fd(ssl.get(), socket->fd());
  const auto host = config::ParseHostPort(address);
  SSL_set_tlsext_host_name(ssl.get(), host->host.c_str());
  X509_VERIFY_PARAM* checks = SSL_get0_param(ssl.get());
  if (X509_VERIFY_PARAM_set1_ip_asc(checks, host->host.c_str()) != 1) {
    SSL_set1_host(ssl.get(), host->host.c_str());
  }
  constexpr unsigned char kHttp2[] = {2, 'h', '2'};  // a length and a name
  SSL_set_alpn_protos(ssl.get(), kHttp2, sizeof(kHttp2));
  ERR_clear_error();
  // SSL_VERIFY_NONE, so that a bad certificate is told apart from no TLS.
  const int shaken =
      Drive(*socket, ssl.get(), until, [&] { return SSL_connect(ssl.get()); });
  if (shaken == kTooLate) return {Reach::kHangs, ""};
  const std::string why = shaken > 0 ? "" : TlsError();
  const Held<X509> peer(SSL_get1_peer_certificate(ssl.get()));
  if (peer == nullptr) {
    return {keys.enabled() ? Reach::kNoTls : Reach::kStranger, why};
  }
  if (!keys.enabled()) return {Reach::kWantsTls, ""};
  const long verified = SSL_get_verify_result(ssl.get());
  if (verified != X509_V_OK) {
    return {Reach::kBadPeerCert, X509_verify_cert_error_string(verified)};
  }
  if (shaken <= 0) return {Reach::kRefusesCert, why};
  // TLS 1.3 tells us only now what the peer thinks of our certificate.
  char byte = 0;
  const int read = Drive(
      *socket, ssl.get(), until, [&] { return SSL_read(ssl.get(), &byte, 1); });
  return read > 0 ? ReachResult{Reach::kStranger, ""}
                  : ReachResult{Reach::kRefusesCert, TlsError()};
}

absl::Status CanListen(const std::string& address) {
  std::vector<Endpoint> endpoints;
  constexpr absl::Duration kLookUp = absl::Seconds(5);
  const ReachResult resolved = Resolve(address, kLookUp, &endpoints);
  if (resolved.reach != Reach::kOk) {
    return absl::InvalidArgumentError(resolved.detail);
  }
  const Socket socket(endpoints[0].family);
  const int one = 1;
  setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  const Endpoint& at = endpoints[0];
  if (bind(socket.fd(),
           reinterpret_cast<const sockaddr*>(&at.address),
           at.size) == 0 &&
      listen(socket.fd(), 1) == 0) {
    return absl::OkStatus();
  }
  return errno == EADDRINUSE ? absl::UnavailableError(std::strerror(errno))
                             : absl::InvalidArgumentError(std::strerror(errno));
}

}  // namespace conclave::cluster
