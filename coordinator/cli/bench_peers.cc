// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_peers.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "common/buffer.h"
#include "common/limits.h"
#include "common/transport/channel.h"
#include "common/transport/grpc_exchange_server.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"

namespace conclave::cli {
namespace {

constexpr size_t kBusyFloats = 64 << 10;
constexpr size_t kLengthBytes = sizeof(uint64_t);

bool WriteAll(int fd, const std::byte* data, size_t size) {
  while (size > 0) {
    const ssize_t n = write(fd, data, size);
    if (n <= 0) return false;
    data += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

bool ReadAll(int fd, std::byte* data, size_t size) {
  while (size > 0) {
    const ssize_t n = read(fd, data, size);
    if (n <= 0) return false;
    data += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

void SendAtOnce(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

void TellPort(int pipe, int port) {
  const auto bytes = std::as_bytes(std::span(&port, 1));
  WriteAll(pipe, bytes.data(), bytes.size());
}

// The lengths come from this program's own other half.
void EchoSockets(int pipe, BusyWork* work) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(listener, generic, size) != 0 || listen(listener, 1) != 0 ||
      getsockname(listener, generic, &size) != 0) {
    return;
  }
  TellPort(pipe, ntohs(address.sin_port));
  const int fd = accept(listener, nullptr, nullptr);
  if (fd < 0) return;
  SendAtOnce(fd);
  std::vector<std::byte> frame(kLengthBytes);
  while (ReadAll(fd, frame.data(), kLengthBytes)) {
    uint64_t length = 0;
    std::memcpy(&length, frame.data(), sizeof(length));
    if (length < kLengthBytes || length > limits::kFrameBytesMax) return;
    frame.resize(std::max(frame.size(), static_cast<size_t>(length)));
    if (!ReadAll(fd, frame.data() + kLengthBytes, length - kLengthBytes)) {
      return;
    }
    if (work != nullptr) work->Run();
    if (!WriteAll(fd, frame.data(), length)) return;
  }
}

void EchoGrpc(int pipe, BusyWork* work) {
  transport::GrpcExchangeServer exchange(
      {.spin_us = kBenchSpinUs, .handler = [work](auto frame) {
         if (work != nullptr) work->Run();
         return Buffer::Copy(frame);
       }});
  grpc::ServerBuilder builder;
  transport::ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort(
      "127.0.0.1:0", transport::ServerCredentials({}), &port);

  exchange.Register(&builder);
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return;
  exchange.Start();
  TellPort(pipe, port);
  server->Wait();  // until this process is killed
}

}  // namespace

absl::StatusOr<std::unique_ptr<EchoPeer>> EchoPeer::Start(Kind kind,
                                                          bool busy) {
  int pipes[2];
  if (pipe(pipes) != 0) return absl::InternalError("bench: no pipe");
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError("bench: no process");
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(pipes[0]);
    const auto work = busy ? std::make_unique<BusyWork>() : nullptr;
    if (kind == Kind::kGrpc) {
      EchoGrpc(pipes[1], work.get());
    } else {
      EchoSockets(pipes[1], work.get());
    }
    _exit(1);
  }
  close(pipes[1]);
  int port = 0;
  const bool told =
      ReadAll(pipes[0], reinterpret_cast<std::byte*>(&port), sizeof(port));
  close(pipes[0]);
  auto peer = std::unique_ptr<EchoPeer>(new EchoPeer(pid, port));
  if (!told) return absl::UnavailableError("bench: an echo process died");
  return peer;
}

EchoPeer::~EchoPeer() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

absl::StatusOr<std::unique_ptr<RawConnection>> RawConnection::Open(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = Loopback(port);
  auto connection = std::unique_ptr<RawConnection>(new RawConnection(fd));
  if (connect(fd,
              reinterpret_cast<const sockaddr*>(&address),
              sizeof(address)) != 0) {
    return absl::UnavailableError("bench: the echo process does not listen");
  }
  SendAtOnce(fd);
  return connection;
}

RawConnection::~RawConnection() { close(fd_); }

bool RawConnection::Write(std::span<const std::byte> frame) {
  return WriteAll(fd_, frame.data(), frame.size());
}

bool RawConnection::Read(std::span<std::byte> frame) {
  return ReadAll(fd_, frame.data(), frame.size());
}

BusyWork::BusyWork()
    : pool_(AvailableCores(), kBenchSpinUs), values_(kBusyFloats, 1.f) {}

void BusyWork::Run() {
  pool_.ParallelFor(
      kBusyFloats, kBusyFloats / 16, [this](auto begin, auto end) {
        for (auto i = begin; i < end; ++i) {
          values_[static_cast<size_t>(i)] =
              values_[static_cast<size_t>(i)] * 0.999f + 0.5f;
        }
      });
}

}  // namespace conclave::cli
