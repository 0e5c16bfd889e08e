// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/device_queue.h"
#include "kernels/device_step.h"

// Values to the device and back. What goes wrong fails the test that asks.
namespace conclave::kernels {

inline DeviceBuffer Room(DeviceQueue& queue, size_t bytes) {
  auto buffer = queue.Allocate(bytes, "a test's values");
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? *std::move(buffer) : DeviceBuffer();
}

template <typename T>
DeviceBuffer Up(DeviceQueue& queue, const std::vector<T>& values) {
  const size_t bytes = values.size() * sizeof(T);
  DeviceBuffer buffer = Room(queue, bytes);
  const absl::Status status =
      queue.Upload(values.data(), bytes, buffer.as<void>());
  EXPECT_TRUE(status.ok()) << status;
  return buffer;
}

template <typename T>
std::vector<T> Down(DeviceQueue& queue, const T* from, size_t n) {
  std::vector<T> out(n);
  const absl::Status status = queue.Download(from, n * sizeof(T), out.data());
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

struct TestSequence {
  int32_t rows = 1;
  int32_t position = 0;
  int32_t slot_in = -1;
  std::vector<int32_t> slots_out;  // one per row; missing ones are -1
  std::vector<int32_t> kv_blocks;
};

// A step with its contents in device memory. Owns them.
class TestStep {
 public:
  // kv_stride: at least so many blocks per sequence.
  TestStep(DeviceQueue& queue,
           const std::vector<TestSequence>& sequences,
           int32_t kv_stride = 0) {
    step.sequences = static_cast<int32_t>(sequences.size());
    step.kv_stride = kv_stride;
    for (const TestSequence& s : sequences) {
      step.rows += s.rows;
      step.rows_max = std::max(step.rows_max, s.rows);
      step.positions_max = std::max(step.positions_max, s.position + s.rows);
      step.kv_stride =
          std::max(step.kv_stride, static_cast<int32_t>(s.kv_blocks.size()));
    }
    const std::vector<int32_t> all = Contents(sequences);
    memory_ = Up(queue, all);
    const int32_t* at = memory_.as<int32_t>();
    const auto take = [&](int32_t count) {
      return std::exchange(at, at + count);
    };
    step.token = take(step.rows);
    step.sequence_of = take(step.rows);
    step.position = take(step.rows);
    step.slot_out = take(step.rows);
    step.row_begin = take(step.sequences + 1);
    step.slot_in = take(step.sequences);
    step.kv_blocks = take(step.sequences * step.kv_stride);
  }

  // Other contents for a recorded step: as many rows and sequences.
  void Replace(DeviceQueue& queue, const std::vector<TestSequence>& sequences) {
    const std::vector<int32_t> all = Contents(sequences);
    ASSERT_EQ(all.size() * sizeof(int32_t), memory_.bytes());
    const absl::Status status =
        queue.Upload(all.data(), memory_.bytes(), memory_.as<void>());
    EXPECT_TRUE(status.ok()) << status;
  }

  DeviceStep step;

 private:
  std::vector<int32_t> Contents(
      const std::vector<TestSequence>& sequences) const {
    std::vector<int32_t> token, sequence_of, position, slot_out, slot_in;
    std::vector<int32_t> row_begin = {0}, kv_blocks;
    for (const TestSequence& s : sequences) {
      for (int32_t row = 0; row < s.rows; ++row) {
        token.push_back(0);
        sequence_of.push_back(static_cast<int32_t>(slot_in.size()));
        position.push_back(s.position + row);
        const auto slots = static_cast<int32_t>(s.slots_out.size());
        slot_out.push_back(row < slots ? s.slots_out[row] : -1);
      }
      slot_in.push_back(s.slot_in);
      row_begin.push_back(static_cast<int32_t>(token.size()));
      kv_blocks.insert(kv_blocks.end(), s.kv_blocks.begin(), s.kv_blocks.end());
      // No block: reading it would be noticed.
      kv_blocks.resize(slot_in.size() * step.kv_stride, INT32_MAX);
    }
    std::vector<int32_t> all;
    for (const auto* part : {&token,
                             &sequence_of,
                             &position,
                             &slot_out,
                             &row_begin,
                             &slot_in,
                             &kv_blocks}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    return all;
  }

  DeviceBuffer memory_;
};

}  // namespace conclave::kernels
