// SPDX-License-Identifier: Apache-2.0
// delay_relay LISTEN_IP PORT TARGET_IP PORT MICROSECONDS: passes TCP on in both
// directions, each byte so much later. For kernels without netem.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPieceBytes = 256 << 10;
constexpr size_t kWaitingBytesMax = 64 << 20;

sockaddr_in Address(const char* ip, const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
  inet_pton(AF_INET, ip, &address.sin_addr);
  return address;
}

void SendAtOnce(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

// One direction: a thread reads and stamps, another writes when it is time.
class Pipe {
 public:
  Pipe(int from, int to, Clock::duration delay)
      : from_(from), to_(to), delay_(delay) {}

  void Read() {
    while (true) {
      std::vector<char> piece(kPieceBytes);
      const ssize_t n = read(from_, piece.data(), piece.size());
      piece.resize(n > 0 ? static_cast<size_t>(n) : 0);
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [&] { return bytes_ < kWaitingBytesMax; });
      bytes_ += piece.size();
      const bool end = piece.empty();
      pieces_.push_back({Clock::now() + delay_, std::move(piece)});
      changed_.notify_all();
      if (end) return;
    }
  }

  void Write() {
    // Sleeps would be 50 us late.
    prctl(PR_SET_TIMERSLACK, 1);
    while (true) {
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [&] { return !pieces_.empty(); });
      const Piece piece = std::move(pieces_.front());
      pieces_.pop_front();
      bytes_ -= piece.bytes.size();
      changed_.notify_all();
      lock.unlock();
      std::this_thread::sleep_until(piece.when);
      if (piece.bytes.empty()) break;
      for (size_t at = 0; at < piece.bytes.size();) {
        const ssize_t n =
            write(to_, piece.bytes.data() + at, piece.bytes.size() - at);
        if (n <= 0) {
          shutdown(from_, SHUT_RDWR);
          return;
        }
        at += static_cast<size_t>(n);
      }
    }
    shutdown(to_, SHUT_WR);
  }

 private:
  struct Piece {
    Clock::time_point when;
    std::vector<char> bytes;
  };
  const int from_, to_;
  const Clock::duration delay_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<Piece> pieces_;
  size_t bytes_ = 0;
};

void Serve(int client, const sockaddr_in& target, Clock::duration delay) {
  const int server = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(server,
              reinterpret_cast<const sockaddr*>(&target),
              sizeof(target)) == 0) {
    SendAtOnce(client);
    SendAtOnce(server);
    Pipe out(client, server, delay), back(server, client, delay);
    std::thread threads[] = {std::thread(&Pipe::Read, &out),
                             std::thread(&Pipe::Write, &out),
                             std::thread(&Pipe::Read, &back),
                             std::thread(&Pipe::Write, &back)};
    for (std::thread& thread : threads) thread.join();
  }
  close(server);
  close(client);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr,
                 "delay_relay LISTEN_IP PORT TARGET_IP PORT MICROSECONDS\n");
    return EXIT_FAILURE;
  }
  signal(SIGPIPE, SIG_IGN);
  const sockaddr_in listen_at = Address(argv[1], argv[2]);
  const sockaddr_in target = Address(argv[3], argv[4]);
  const auto delay = std::chrono::microseconds(std::atoi(argv[5]));
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  const int one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(listener,
           reinterpret_cast<const sockaddr*>(&listen_at),
           sizeof(listen_at)) != 0 ||
      listen(listener, SOMAXCONN) != 0) {
    std::perror("delay_relay: cannot listen");
    return EXIT_FAILURE;
  }
  while (true) {
    const int client = accept(listener, nullptr, nullptr);
    if (client < 0) return EXIT_FAILURE;
    std::thread(Serve, client, target, delay).detach();
  }
}
