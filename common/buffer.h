// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>

namespace conclave {

// Bytes with one owner, aligned to 64, not initialised. Moves, never copies:
// a frame is written once and handed down to the transport. Large ones ask for
// huge pages: weights are read whole in every step, and a load spares the
// faults of a page each 4 KiB.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size)
      : data_(size == 0 ? nullptr : Allocate(size)), size_(size) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::span<std::byte> bytes() { return {data_.get(), size_}; }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }

  static Buffer Copy(std::span<const std::byte> from) {
    Buffer out(from.size());
    if (!from.empty()) std::memcpy(out.data(), from.data(), from.size());
    return out;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, kAlignment); }
  };
  static std::byte* Allocate(size_t size);
  std::unique_ptr<std::byte[], Free> data_;
  size_t size_ = 0;
};

}  // namespace conclave
