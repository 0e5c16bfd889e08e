// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/thread_pool.h"

namespace conclave::cli {

// How both sides of the exchange benchmark run: as shipped.
inline constexpr int32_t kBenchSpinUs = 50;

// A process that sends back what it gets. Killed with its owner.
class EchoPeer {
 public:
  enum class Kind {
    kGrpc,     // the exchange server of the worker
    kSockets,  // blocking reads and writes on a plain TCP connection
  };
  // Forks: call it before this process uses gRPC or starts a thread. With
  // `busy` the peer computes for each frame, on one thread per core.
  static absl::StatusOr<std::unique_ptr<EchoPeer>> Start(Kind kind, bool busy);
  ~EchoPeer();

  int port() const { return port_; }

 private:
  EchoPeer(pid_t pid, int port) : pid_(pid), port_(port) {}
  const pid_t pid_;
  const int port_;
};

// The client's end of a kSockets peer.
class RawConnection {
 public:
  static absl::StatusOr<std::unique_ptr<RawConnection>> Open(int port);
  ~RawConnection();

  // False when the connection broke. A frame begins with its length.
  bool Write(std::span<const std::byte> frame);
  bool Read(std::span<std::byte> frame);

 private:
  explicit RawConnection(int fd) : fd_(fd) {}
  const int fd_;
};

// A few dozen microseconds of arithmetic in all threads of a team, as a layer
// of a small model has it.
class BusyWork {
 public:
  BusyWork();
  void Run();

 private:
  ThreadPool pool_;
  std::vector<float> values_;
};

}  // namespace conclave::cli
