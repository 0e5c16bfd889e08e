// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/weight.h"
#include "tests/testing/bits.h"
#include "tests/testing/every_target.h"
#include "tests/testing/machine.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {

using testing::Bits;

// A weight with its memory: rows are `gap` elements longer than cols, so that
// a kernel that ignores the stride fails, and the gaps hold huge numbers.
class TestWeight {
 public:
  TestWeight(uint32_t seed, DType dtype, int64_t rows, int64_t cols, int gap)
      : dtype_(dtype), rows_(rows), cols_(cols), stride_(cols + gap) {
    testing::Seeded seeded(seed);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < stride_; ++c) {
        Append(c < cols ? static_cast<float>(seeded.Real()) : 1e30f);
      }
    }
  }
  WeightView view() const {
    const void* data = dtype_ == DType::kF32
                           ? static_cast<const void*>(floats_.data())
                           : static_cast<const void*>(halves_.data());
    return {data, dtype_, rows_, cols_, stride_};
  }

 private:
  void Append(float value) {
    if (dtype_ == DType::kF32) {
      floats_.push_back(value);
    } else {
      halves_.push_back(
          static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
    }
  }
  DType dtype_;
  int64_t rows_, cols_, stride_;
  std::vector<float> floats_;
  std::vector<uint16_t> halves_;
};

// An output with sentinels on both sides. It starts full of NaNs, so that an
// element that nobody wrote is seen.
class Guarded {
 public:
  explicit Guarded(size_t size)
      : size_(size), memory_(size + 2 * kGuard, kSentinel) {
    for (float& x : span()) x = std::bit_cast<float>(0x7fc00000u);
  }
  std::span<float> span() { return std::span(memory_).subspan(kGuard, size_); }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (memory_[i] != kSentinel) return false;
      if (memory_[kGuard + size_ + i] != kSentinel) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr float kSentinel = -12345.75f;
  size_t size_;
  std::vector<float> memory_;
};

}  // namespace conclave::kernels
