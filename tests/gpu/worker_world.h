// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/bf16.h"
#include "tests/testing/seeded.h"
#include "worker/expert_device.h"

// Made-up experts of a worker, on the CPU and on a device.
namespace conclave::worker {

constexpr uint64_t kWorldMemory = uint64_t{64} << 30;  // what it is told

inline absl::StatusOr<MemoryState> WorldMemory() {
  return MemoryState{.total_bytes = kWorldMemory, .free_bytes = kWorldMemory};
}

inline std::unique_ptr<ExpertDevice> NewDevice(
    int32_t number,
    int32_t rows_max = ExpertDevice::kRowsMax,
    int32_t pairs_max = ExpertDevice::kPairsMax,
    std::function<absl::StatusOr<MemoryState>()> memory = WorldMemory) {
  auto queue = kernels::DeviceQueue::Create(number);
  EXPECT_TRUE(queue.ok()) << queue.status();
  if (!queue.ok()) return nullptr;
  return std::make_unique<ExpertDevice>(
      *std::move(queue),
      ExpertDevice::Options{.name = "GPU of a test",
                            .memory = std::move(memory),
                            .rows_max = rows_max,
                            .pairs_max = pairs_max});
}

inline WeightLayout WorldLayout(const std::string& format,
                                int64_t rows,
                                int64_t cols) {
  WeightLayout out{.dtype = DType::kBF16, .rows = rows, .cols = cols};
  if (format == "fp8") {
    out.dtype = DType::kF8E4M3;
    out.group = static_cast<int32_t>(std::gcd(int64_t{128}, rows));
  } else if (format != "bf16") {
    const bool gptq = format == "gptq";
    out.dtype = DType::kU32;
    out.bits = gptq ? 4 : format[6] - '0';  // affineN
    out.group = static_cast<int32_t>(std::gcd(int64_t{gptq ? 128 : 64}, cols));
    out.scale_dtype = gptq ? DType::kF16 : DType::kBF16;
    out.biases = !gptq;
  }
  return out;
}

// Random numbers of a format, of about one size each.
inline checkpoint::StackedWeight WorldWeight(const std::string& format,
                                             uint32_t seed,
                                             int32_t slices,
                                             int64_t rows,
                                             int64_t cols) {
  testing::Seeded random(seed);
  const WeightLayout each = WorldLayout(format, rows, cols);
  checkpoint::StackedWeight out{.each = each,
                                .data = Buffer(slices * each.data_bytes()),
                                .scales = Buffer(slices * each.scale_bytes()),
                                .biases = Buffer(slices * each.bias_bytes())};
  const auto halves = [&](Buffer& to, double amplitude) {
    auto* at = reinterpret_cast<uint16_t*>(to.data());
    for (size_t i = 0; i < to.size() / sizeof(uint16_t); ++i) {
      // f16: 0.03 to 0.06, of both signs.
      at[i] = each.scale_dtype == DType::kF16 && amplitude < 1
                  ? static_cast<uint16_t>(0x2800 | random.Int(0x400) |
                                          random.Int(2) << 15)
                  : ToBf16(static_cast<float>(random.Real(amplitude)));
    }
  };
  if (each.dtype == DType::kBF16) {
    halves(out.data, 1);
    return out;
  }
  for (std::byte& code : out.data.bytes()) {
    auto bits = static_cast<uint8_t>(random.Int(256));
    if (each.dtype == DType::kF8E4M3 && (bits & 0x7f) == 0x7f) bits = 0x38;
    code = std::byte{bits};
  }
  halves(out.scales, 0.05);
  halves(out.biases, 1);
  return out;
}

// A shard of one layer.
inline HeldShard WorldShard(const std::string& format,
                            int32_t slices,
                            int32_t width,
                            int32_t hidden) {
  checkpoint::ShardLayer layer;
  layer.slices = slices;
  layer.width = width;
  layer.gate = WorldWeight(format, 1, slices, width, hidden);
  layer.up = WorldWeight(format, 2, slices, width, hidden);
  layer.down = WorldWeight(format, 3, slices, hidden, width);
  HeldShard out;
  out.weights.layers.push_back(std::move(layer));
  return out;
}

// Entries of a frame, its rows, and what ShardWork points to.
struct WorldFrame {
  // all_to_one: each row has slice 1 alone; else per_row slices by chance.
  WorldFrame(uint32_t seed,
             int32_t count,
             int32_t hidden,
             int32_t slices,
             int32_t per_row,
             bool all_to_one)
      : x(testing::Seeded(seed).Floats(static_cast<size_t>(count) * hidden)) {
    testing::Seeded random(seed + 1);
    for (int32_t s = 0; s < slices; ++s) {
      for (int32_t r = 0; r < count; ++r) {
        const bool chosen =
            all_to_one ? s == 1
                       : s == r % slices || random.Int(slices) < per_row;
        if (!chosen) continue;
        slice.push_back(s);
        row.push_back(r);
        weight.push_back(static_cast<float>(random.Real()));
      }
    }
    rows.resize(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), 0);
    // As the device reads them, so that no rounding of x shows.
    for (float& value : x) value = FromBf16(ToBf16(value));
  }

  std::vector<float> Sum(ShardSums* sums,
                         const HeldShard& shard,
                         kernels::Activations activations) const {
    std::vector<float> out(x.size(), 12345.75f);
    const absl::Status status =
        sums->Sum({.shard = &shard,
                   .layer = 0,
                   .hidden = static_cast<int32_t>(x.size() / rows.size()),
                   .activations = activations,
                   .x = std::as_bytes(std::span(x)),
                   .dtype = DType::kF32,
                   .rows = rows,
                   .entries = {.slice = slice, .row = row, .weight = weight}},
                  out);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  std::vector<int32_t> slice, row, rows;
  std::vector<float> weight, x;
};

}  // namespace conclave::worker
