// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace conclave {

// A FIFO with a limit. Push never waits: a full queue is ResourceExhausted,
// which the caller passes on to whoever asked. Thread-safe.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Cancelled after Close, ResourceExhausted when full.
  absl::Status Push(T item) {
    absl::MutexLock lock(&mutex_);
    if (closed_) return absl::CancelledError("queue is closed");
    if (items_.size() >= capacity_) {
      return absl::ResourceExhaustedError("queue is full");
    }
    items_.push_back(std::move(item));
    return absl::OkStatus();
  }

  std::optional<T> TryPop() {
    absl::MutexLock lock(&mutex_);
    return PopLocked();
  }

  // Waits for an item, at most `timeout`; nullopt then or once closed.
  std::optional<T> Pop(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(
        absl::Condition(
            +[](BoundedQueue* q) { return q->closed_ || !q->items_.empty(); },
            this),
        timeout);
    return PopLocked();
  }

  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }

  size_t size() const {
    absl::MutexLock lock(&mutex_);
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
  mutable absl::Mutex mutex_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace conclave
