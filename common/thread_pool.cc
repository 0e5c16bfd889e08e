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

// A loop is announced by one word: its number above, whether helpers may still
// join it, and how many did. The caller closes it when the range is used up
// and waits for those that joined; a helper that wakes too late, because cores
// are scarce, finds it closed and holds nobody up. A helper inside a loop has
// joined it, so the next one is never announced around it.
struct ThreadPool::Impl {
  using Body = absl::FunctionRef<void(int64_t, int64_t)>;

  static constexpr uint64_t kClosed = uint64_t{1} << 15;
  static constexpr uint64_t kJoined = kClosed - 1;
  static uint64_t Number(uint64_t word) { return word >> 16; }

  void Work(const Body& run) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      run(begin, std::min(n, begin + grain));
    }
  }

  // Returns at a loop that is not `seen`: first spins, then sleeps.
  void WaitForLoop(uint64_t seen) {
    const auto is_new = [&] {
      return Number(loop.load(std::memory_order_acquire)) != seen;
    };
    if (spin_us > 0) {
      const auto limit =
          std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
      for (int spins = 1; !is_new(); ++spins) {
        Pause();
        if (spins % 64 == 0 && std::chrono::steady_clock::now() > limit) break;
      }
    }
    if (is_new()) return;
    std::unique_lock<std::mutex> lock(mutex);
    ++sleepers;
    wake.wait(lock, is_new);
    --sleepers;
  }

  bool Join(uint64_t& word) {
    while ((word & kClosed) == 0) {
      if (loop.compare_exchange_weak(word,
                                     word + 1,
                                     std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
        return true;
      }
    }
    return false;
  }

  void Helper() {
    uint64_t seen = 0;
    for (;;) {
      WaitForLoop(seen);
      uint64_t word = loop.load(std::memory_order_acquire);
      const bool joined = Join(word);
      seen = Number(word);
      if (joined) {
        Work(*body);
        finished.fetch_add(1, std::memory_order_release);
      } else if (stop.load(std::memory_order_relaxed)) {
        return;
      }
    }
  }

  void Announce(uint64_t flags) {
    bool sleeping = false;
    {
      std::lock_guard<std::mutex> lock(mutex);
      const uint64_t number = Number(loop.load(std::memory_order_relaxed));
      loop.store((number + 1) << 16 | flags, std::memory_order_release);
      sleeping = sleepers > 0;
    }
    if (sleeping) wake.notify_all();
  }

  void CloseAndWait() {
    const uint64_t joined =
        loop.fetch_or(kClosed, std::memory_order_acq_rel) & kJoined;
    for (int spins = 0; finished.load(std::memory_order_acquire) != joined;
         ++spins) {
      if (spins < 4096) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  int32_t spin_us = 0;
  std::vector<std::thread> helpers;
  std::mutex mutex;
  std::condition_variable wake;
  int32_t sleepers = 0;  // under mutex
  std::atomic<bool> stop{false};
  // Loop number << 16 | kClosed | joined; closed between loops.
  std::atomic<uint64_t> loop{kClosed};
  std::atomic<uint64_t> finished{0};
  // Of the loop, written while it is closed and nobody is inside.
  std::atomic<int64_t> next{0};
  int64_t n = 0;
  int64_t grain = 1;
  const Body* body = nullptr;
};

ThreadPool::ThreadPool(int32_t threads, int32_t spin_us)
    : impl_(std::make_unique<Impl>()) {
  CONCLAVE_CHECK(threads >= 1 && threads < 1024);
  impl_->spin_us = spin_us;
  for (int32_t i = 1; i < threads; ++i) {
    impl_->helpers.emplace_back([impl = impl_.get()] { impl->Helper(); });
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_relaxed);
  impl_->Announce(Impl::kClosed);
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
  impl_->finished.store(0, std::memory_order_relaxed);
  impl_->Announce(0);
  impl_->Work(body);
  impl_->CloseAndWait();
}

int32_t AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int32_t cores = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = CPU_COUNT(&set);
  return std::max(1, std::min(cores, QuotaCores()));
}

}  // namespace conclave
