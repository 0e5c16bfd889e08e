// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace conclave {

// A FIFO with a limit. Push never waits: a full queue is ResourceExhausted,
// which the caller passes on to whoever asked. Thread-safe. (std::mutex: the
// distributions' absl::Mutex is invisible to ThreadSanitizer.)
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Cancelled after Close, ResourceExhausted when full.
  absl::Status Push(T item) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return absl::CancelledError("queue is closed");
    if (items_.size() >= capacity_) {
      return absl::ResourceExhaustedError("queue is full");
    }
    items_.push_back(std::move(item));
    changed_.notify_one();
    return absl::OkStatus();
  }

  std::optional<T> TryPop() {
    std::lock_guard<std::mutex> lock(mutex_);
    return PopLocked();
  }

  // Waits for an item, at most `timeout`; nullopt then or once closed.
  std::optional<T> Pop(absl::Duration timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto ready = [this] { return closed_ || !items_.empty(); };
    if (timeout < absl::Hours(24)) {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(timeout), ready);
    } else {
      changed_.wait(lock, ready);
    }
    return PopLocked();
  }

  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

  size_t size() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return items_.size();
  }

 private:
  std::optional<T> PopLocked() {
    if (items_.empty()) return std::nullopt;
    std::optional<T> out(std::move(items_.front()));
    items_.pop_front();
    return out;
  }

  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace conclave
