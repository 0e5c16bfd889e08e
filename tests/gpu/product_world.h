// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/bf16.h"
#include "kernels/device_product.h"
#include "kernels/expert_stack.h"
#include "tests/gpu/device_values.h"
#include "tests/parity/dense/packed_weight.h"
#include "tests/testing/seeded.h"

// Weights and rows of products, in host memory and on the device.
namespace conclave::kernels {

// bf16 rows: the products of bf16 numbers are exact, sums are float32.
inline constexpr double kNarrow = 2e-5;
// Weights are rounded to bf16 as well.
inline constexpr double kWide = 4e-3;
inline constexpr double kExact = 2e-6;
inline constexpr float kSentinel = -12345.75f;

inline std::unique_ptr<DeviceQueue> NewQueue() {
  auto queue = DeviceQueue::Create(0);
  EXPECT_TRUE(queue.ok()) << queue.status();
  return queue.ok() ? *std::move(queue) : nullptr;
}

// A weight of any format in host memory, "bf16" among them.
class AnyWeight {
 public:
  AnyWeight(const std::string& format,
            uint32_t seed,
            int64_t rows,
            int64_t cols) {
    for (const PackedFormat& f : PackedFormats()) {
      if (f.name == format) packed_.emplace_back(seed, f, rows, cols);
    }
    if (!packed_.empty()) return;
    for (const float x : testing::Seeded(seed).Floats(rows * cols, 0.5)) {
      plain_.push_back(ToBf16(x));
    }
    view_ = {plain_.data(), DType::kBF16, rows, cols, cols};
  }
  WeightView view() const {
    return packed_.empty() ? view_ : packed_[0].view();
  }

 private:
  std::vector<PackedWeight> packed_;
  std::vector<uint16_t> plain_;
  WeightView view_;
};

inline std::vector<std::string> Formats() {
  return {"bf16",
          "affine3",
          "affine4",
          "affine5",
          "affine6",
          "affine8",
          "affine4_32",
          "gptq",
          "fp8"};
}

// Rows as the device has them: padded to 64, in bf16 or float32.
struct TestRows {
  TestRows(
      DeviceQueue& queue, uint32_t seed, int64_t rows, int64_t cols, bool bf16)
      : rows(rows),
        cols(cols),
        values(testing::Seeded(seed).Floats(rows * cols)) {
    const int64_t padded = (cols + 63) / 64 * 64;
    std::vector<float> wide(rows * padded);
    std::vector<uint16_t> half(rows * padded), lost(rows * padded);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        float& x = values[r * cols + c];
        half[r * padded + c] = ToBf16(x);
        const float rounded = FromBf16(ToBf16(x));
        lost[r * padded + c] = ToBf16(x - rounded);
        full.push_back(x);
        if (bf16) x = rounded;
        wide[r * padded + c] = x;
      }
    }
    memory = bf16 ? Up(queue, half) : Up(queue, wide);
    low = Up(queue, lost);
    ordered = Room(queue, rows * padded * sizeof(uint16_t));
    device = {memory.as<void>(), bf16, ordered.as<void>()};
  }
  int64_t rows, cols;
  std::vector<float> values;  // as products read them
  std::vector<float> full;    // before rounding
  DeviceBuffer memory, low, ordered;
  DeviceRows device;
};

// In double.
inline std::vector<float> Reference(const WeightView& w,
                                    const std::vector<float>& x,
                                    int64_t rows) {
  std::vector<float> out(rows * w.rows), line(w.cols);
  for (int64_t o = 0; o < w.rows; ++o) {
    DecodeRow(w, o, line);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < w.cols; ++c) {
        sum += static_cast<double>(line[c]) * x[r * w.cols + c];
      }
      out[r * w.rows + o] = static_cast<float>(sum);
    }
  }
  return out;
}

struct OnDevice {
  OnDevice(DeviceQueue& queue, const std::vector<WeightView>& parts) {
    MatrixPlan plan;
    for (const WeightView& part : parts) plan.parts.push_back(LayoutOf(part));
    auto made = MakeMatrix(&queue, plan, "a test's matrix");
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return;
    matrix = *std::move(made);
    MatrixLoader loader(&queue);
    for (size_t i = 0; i < parts.size(); ++i) {
      const absl::Status status =
          loader.Load(parts[i], plan, 0, static_cast<int32_t>(i), &matrix);
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  DeviceMatrix matrix;
};

inline double Error(const std::vector<float>& got,
                    const std::vector<float>& want) {
  if (got.size() != want.size()) return 1e9;
  return testing::RelativeError(got.data(), want.data(), got.size());
}

}  // namespace conclave::kernels
