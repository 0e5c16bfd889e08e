// SPDX-License-Identifier: Apache-2.0
#include "common/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"

namespace conclave {
namespace {

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Cores allowed by the cgroup's quota, or a large number.
int32_t QuotaCores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 1024;
  const double cores = std::strtod(quota.c_str(), nullptr) / period;
  return std::max(1, static_cast<int32_t>(cores + 0.5));
}

}  // namespace

struct ThreadPool::Impl {
  using Body = absl::FunctionRef<void(int64_t, int64_t)>;

  void Work(const Body& run) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      run(begin, std::min(n, begin + grain));
    }
  }

  // Returns false when the pool stops.
  bool WaitForLoop(uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    const auto limit = std::chrono::microseconds(std::max(0, spin_us));
    for (int spins = 0; spin_us > 0; ++spins) {
      if (epoch.load(std::memory_order_acquire) != seen) return !stop;
      Pause();
      if (spins % 64 == 63 &&
          std::chrono::steady_clock::now() - start > limit) {
        break;
      }
    }
    std::unique_lock<std::mutex> lock(mutex);
    ++sleepers;
    wake.wait(lock, [&] { return epoch.load() != seen; });
    --sleepers;
    return !stop;
  }

  void Helper() {
    uint64_t seen = 0;
    while (WaitForLoop(seen)) {
      seen = epoch.load(std::memory_order_acquire);
      Work(*body);
      running.fetch_sub(1, std::memory_order_release);
    }
  }

  void Announce() {
    bool sleeping = false;
    {
      std::lock_guard<std::mutex> lock(mutex);
      epoch.fetch_add(1, std::memory_order_release);
      sleeping = sleepers > 0;
    }
    if (sleeping) wake.notify_all();
  }

  int32_t spin_us = 0;
  std::vector<std::thread> helpers;
  std::mutex mutex;
  std::condition_variable wake;
  int32_t sleepers = 0;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> epoch{0};
  std::atomic<int64_t> next{0};
  std::atomic<int32_t> running{0};
  int64_t n = 0;
  int64_t grain = 1;
  const Body* body = nullptr;
};

ThreadPool::ThreadPool(int32_t threads, int32_t spin_us)
    : impl_(std::make_unique<Impl>()) {
  CONCLAVE_CHECK_GE(threads, 1);
  impl_->spin_us = spin_us;
  for (int32_t i = 1; i < threads; ++i) {
    impl_->helpers.emplace_back([impl = impl_.get()] { impl->Helper(); });
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop = true;
  impl_->Announce();
  for (std::thread& helper : impl_->helpers) helper.join();
}

int32_t ThreadPool::threads() const {
  return static_cast<int32_t>(impl_->helpers.size()) + 1;
}

void ThreadPool::ParallelFor(
    int64_t n,
    int64_t grain,
    absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (impl_->helpers.empty() || n <= grain) {
    body(0, n);
    return;
  }
  impl_->n = n;
  impl_->grain = grain;
  impl_->body = &body;
  impl_->next.store(0, std::memory_order_relaxed);
  impl_->running.store(static_cast<int32_t>(impl_->helpers.size()),
                       std::memory_order_relaxed);
  impl_->Announce();
  impl_->Work(body);
  for (int spins = 0; impl_->running.load(std::memory_order_acquire) != 0;
       ++spins) {
    if (spins < 4096) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

int32_t AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int32_t cores = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = CPU_COUNT(&set);
  return std::max(1, std::min(cores, QuotaCores()));
}

}  // namespace conclave
