// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device_attention.h"
#include "kernels/sequence_forms.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/kv_values.h"
#include "tests/testing/machine.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {

constexpr int32_t kWorldHeadDim = 256;
constexpr int32_t kWorldTokens = 64;      // of a block
constexpr int32_t kWorldSpareBlocks = 3;  // that no sequence has

struct WorldPart {
  int32_t rows = 1;
  int32_t position = 0;
};

// A cache on both sides and sequences of one step over it. Blocks are
// scattered; on the device everything that no context holds is NaN, and so are
// scratch and y, so that a read of it shows.
class AttentionWorld {
 public:
  AttentionWorld(int32_t heads,
                 KvDType dtype,
                 const std::vector<WorldPart>& parts);

  DeviceQueue& queue() { return *queue_; }
  const std::vector<TestSequence>& sequences() const { return sequences_; }
  size_t Width() const {
    return static_cast<size_t>(shape_.heads) * kWorldHeadDim;
  }

  // Of `rows` rows from row `first` of this world's; the cache changes.
  std::vector<float> OnDevice(const DeviceStep& step,
                              bool y_bf16,
                              size_t first = 0);

  // Room for a step that Queue takes; Output reads what it left.
  void Begin(const DeviceStep& step);
  absl::Status Queue(const DeviceStep& step, bool y_bf16, size_t first = 0);
  std::vector<float> Output(int32_t rows, bool y_bf16);

  // All sequences; the CPU's cache changes.
  std::vector<float> OnHost();

  // Row by row, so that a row of another sequence shows.
  void ExpectSame(const std::vector<float>& got,
                  const std::vector<float>& want,
                  double tolerance) const;

  // The rows were appended; everything else is as it was, bit by bit. Call
  // after OnHost.
  void ExpectCacheAppended() const;

 private:
  size_t Stride() const { return 2 * Width() + 4 * kWorldHeadDim; }

  void Place(const std::vector<WorldPart>& parts);

  // The first element of a position on the CPU, in heads' worth.
  size_t RowAt(const TestSequence& s, int32_t part, int32_t head, int32_t p);

  // Of an element of the CPU's cache: values are transposed in their block.
  static size_t DeviceIndex(size_t i);

  void MakeCache();

  AttentionShape shape_;
  KvDType dtype_;
  testing::Seeded random_;
  Machine machine_;
  std::unique_ptr<DeviceQueue> queue_;
  std::vector<TestSequence> sequences_;
  int32_t rows_ = 0;
  int32_t blocks_ = 0;
  std::vector<float> q_norm_, k_norm_, projected_;
  std::vector<float> cache_;    // the CPU's
  std::vector<uint8_t> bytes_;  // the device's before the step
  std::vector<bool> appended_;  // per head and position of the CPU's cache
  DeviceBuffer q_norm_device_, k_norm_device_, projected_device_;
  DeviceBuffer cache_device_, scratch_, y_;
};

}  // namespace conclave::kernels
