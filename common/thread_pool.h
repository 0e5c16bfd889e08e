// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace conclave {

// A fixed team of compute threads for fork-join loops of a few microseconds.
// The caller takes part. Helpers spin `spin_us` for the next loop, then block.
// One loop at a time: ParallelFor is called from one thread only (the engine
// or the worker's poller). Not re-entrant.
class ThreadPool {
 public:
  // threads >= 1, the caller included; 1 starts nothing. spin_us <= 0: block
  // at once.
  explicit ThreadPool(int32_t threads, int32_t spin_us = 50);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t threads() const;

  // Calls body(begin, end) for disjoint ranges that cover [0, n), each a
  // multiple of `grain` long but the last; returns when all are done. Results
  // must not depend on how the range was cut.
  void ParallelFor(int64_t n,
                   int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Cores that this process may use (affinity and cgroup quota respected).
int32_t AvailableCores();

}  // namespace conclave
