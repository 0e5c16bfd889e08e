// SPDX-License-Identifier: Apache-2.0
// Routing, experts, shared expert and their sum on the GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device_moe.h"
#include "kernels/device_rows.h"
#include "tests/gpu/product_world.h"
#include "tests/gpu/require_gpu.h"

namespace conclave::kernels {
namespace {

// Router, experts, shared expert and sum of one layer.
struct MoeLayer {
  MoeLayer(DeviceQueue& queue,
           const std::string& format,
           int32_t experts,
           int64_t hidden,
           int64_t width) {
    for (int32_t e = 0; e <= experts; ++e) {
      gate.emplace_back(format, 100 + e, width, hidden);
      up.emplace_back(format, 200 + e, width, hidden);
      down.emplace_back(format, 300 + e, hidden, width);
    }
    const MatrixPlan both{
        .parts = {LayoutOf(gate[0].view()), LayoutOf(up[0].view())},
        .stack = experts + 1,
        .interleaved = true};
    const MatrixPlan back{.parts = {LayoutOf(down[0].view())},
                          .stack = experts + 1};
    stack.gate_up = *MakeMatrix(&queue, both, "gate and up");
    stack.down = *MakeMatrix(&queue, back, "down");
    MatrixLoader loader(&queue);
    for (int32_t e = 0; e <= experts; ++e) {
      EXPECT_TRUE(loader.Load(gate[e].view(), both, e, 0, &stack.gate_up).ok());
      EXPECT_TRUE(loader.Load(up[e].view(), both, e, 1, &stack.gate_up).ok());
      EXPECT_TRUE(loader.Load(down[e].view(), back, e, 0, &stack.down).ok());
    }
  }
  std::vector<AnyWeight> gate, up, down;
  DeviceExpertStack stack;
};

// What row r gets from expert e, weighted; float32 after rounding as the
// device rounds.
void AddExpert(const MoeLayer& layer,
               int32_t e,
               float weight,
               const float* x,
               bool bf16,
               std::vector<double>* out) {
  const std::vector<float> row(x, x + layer.gate[e].view().cols);
  const auto g = Reference(layer.gate[e].view(), row, 1);
  const auto u = Reference(layer.up[e].view(), row, 1);
  std::vector<float> h(g.size());
  for (size_t i = 0; i < h.size(); ++i) {
    h[i] = g[i] / (1.0f + std::exp(-g[i])) * u[i];
    if (bf16) h[i] = FromBf16(ToBf16(h[i]));
  }
  const auto y = Reference(layer.down[e].view(), h, 1);
  for (size_t i = 0; i < y.size(); ++i) (*out)[i] += weight * y[i];
}

// The choices of a row by the rule of kernels/moe.h.
std::vector<std::pair<int32_t, float>> Choices(const float* logits,
                                               int32_t experts,
                                               int32_t top_k) {
  std::vector<std::pair<int32_t, float>> out;
  std::set<int32_t> taken;
  float sum = 0;
  for (int32_t k = 0; k < top_k; ++k) {
    int32_t best = -1;
    for (int32_t e = 0; e < experts; ++e) {
      if (taken.count(e) == 0 && (best < 0 || logits[e] > logits[best])) {
        best = e;
      }
    }
    taken.insert(best);
    out.emplace_back(
        best,
        std::exp(logits[best] - logits[out.empty() ? best : out[0].first]));
    sum += out.back().second;
  }
  for (auto& choice : out) choice.second /= sum;
  out.emplace_back(experts, 1.0f / (1.0f + std::exp(-logits[experts])));
  return out;
}

struct EntryMemory {
  EntryMemory(DeviceQueue& queue,
              int32_t rows,
              int32_t experts,
              int32_t top_k,
              bool bf16) {
    const int64_t pairs = int64_t{rows} * (top_k + 1);
    entries.rows = rows;
    entries.per_row = top_k + 1;
    entries.experts = experts + 1;
    entries.group_rows =
        bf16 ? GroupRowsFor(int64_t{rows} * top_k, experts) : 8;
    entries.groups_max = GroupsMax(pairs, experts + 1, entries.group_rows);
    for (auto* buffer : {&row, &place, &expert, &weight}) {
      *buffer = Room(queue, pairs * 4);
    }
    groups = Room(queue, entries.groups_max * 16);
    count = Room(queue, 4);
    entries.row = row.as<int32_t>();
    entries.place = place.as<int32_t>();
    entries.expert = expert.as<int32_t>();
    entries.weight = weight.as<float>();
    entries.groups = groups.as<int32_t>();
    entries.group_count = count.as<int32_t>();
  }
  DeviceBuffer row, place, expert, weight, groups, count;
  DeviceEntries entries;
};

// Each row's mean square is 1, as a norm with weights of 1 leaves it.
void ExpectUnitRows(const std::vector<float>& rows, int64_t cols) {
  for (size_t begin = 0; begin < rows.size(); begin += cols) {
    double square = 0;
    for (int64_t i = 0; i < cols; ++i) {
      square += static_cast<double>(rows[begin + i]) * rows[begin + i];
    }
    EXPECT_NEAR(square / static_cast<double>(cols), 1.0, 1e-4)
        << "row " << begin / cols;
  }
}

void CheckMoe(const std::string& format,
              int32_t rows,
              int32_t experts,
              int32_t top_k,
              bool bf16,
              float spread) {
  SCOPED_TRACE(format + ", rows " + std::to_string(rows) + ", experts " +
               std::to_string(experts) + (bf16 ? " bf16" : " f32") +
               ", spread " + std::to_string(spread));
  const auto queue = NewQueue();
  constexpr int64_t kHidden = 256, kWidth = 128;
  const MoeLayer layer(*queue, format, experts, kHidden, kWidth);
  const TestRows x(*queue, 3, rows, kHidden, bf16);
  // spread 0: all rows to the same experts, whose logits tie.
  std::vector<float> logits =
      testing::Seeded(9).Floats(rows * (experts + 1), spread);
  const DeviceBuffer device_logits = Up(*queue, logits);
  const EntryMemory memory(*queue, rows, experts, top_k, bf16);
  ASSERT_TRUE(
      DeviceRoute(queue.get(), device_logits.as<float>(), 1, memory.entries)
          .ok());
  const int64_t pairs = int64_t{rows} * (top_k + 1);
  const DeviceBuffer hidden = Room(*queue, pairs * kWidth * 4);
  const DeviceBuffer y =
      Up(*queue, std::vector<float>(pairs * kHidden, kSentinel));
  ASSERT_TRUE(DeviceExperts(queue.get(),
                            layer.stack,
                            memory.entries,
                            x.device,
                            {hidden.as<void>(), bf16},
                            y.as<float>())
                  .ok());
  const std::vector<float> start = testing::Seeded(4).Floats(rows * kHidden);
  const DeviceBuffer sum = Up(*queue, start);
  const DeviceBuffer w = Up(*queue, std::vector<float>(kHidden, 1.0f));
  const DeviceBuffer u = Room(*queue, rows * kHidden * 4);
  ASSERT_TRUE(
      DeviceAddNorm(queue.get(),
                    rows,
                    kHidden,
                    {.pairs = y.as<float>(), .entries = &memory.entries},
                    w.as<float>(),
                    1e-6f,
                    nullptr,
                    sum.as<float>(),
                    {u.as<void>(), false},
                    nullptr)
          .ok());
  std::vector<float> want;
  for (int32_t r = 0; r < rows; ++r) {
    std::vector<double> row(kHidden);
    for (const auto& [e, weight] :
         Choices(&logits[r * (experts + 1)], experts, top_k)) {
      AddExpert(layer, e, weight, &x.values[r * kHidden], bf16, &row);
    }
    for (int64_t i = 0; i < kHidden; ++i) {
      want.push_back(static_cast<float>(row[i] + start[r * kHidden + i]));
    }
  }
  const auto got = Down(*queue, sum.as<float>(), rows * kHidden);
  EXPECT_LE(Error(got, want), !bf16 ? 5e-6 : 6e-3);
  ExpectUnitRows(Down(*queue, u.as<float>(), rows * kHidden), kHidden);
}

TEST(DeviceMoe, RoutesComputesAndSums) {
  CONCLAVE_REQUIRE_GPU();
  for (const std::string& format : Formats()) {
    for (const bool bf16 : {true, false}) CheckMoe(format, 5, 16, 4, bf16, 3);
  }
}

TEST(DeviceMoe, BatchesOfAllSizes) {
  CONCLAVE_REQUIRE_GPU();
  for (const int32_t rows : {1, 2, 8, 31, 33, 64, 256}) {
    CheckMoe("affine4", rows, 32, 8, true, 3);
    CheckMoe("affine4", rows, 300, 10, true, 3);
  }
  CheckMoe("bf16", 700, 16, 4, true, 3);
  CheckMoe("affine8", 700, 16, 4, true, 3);
  CheckMoe("fp8", 700, 16, 4, true, 3);
  CheckMoe("gptq", 700, 16, 4, true, 3);
}

TEST(DeviceMoe, AllRowsToTheSameExperts) {
  CONCLAVE_REQUIRE_GPU();
  for (const int32_t rows : {1, 9, 100, 300}) {
    CheckMoe("affine4", rows, 40, 3, true, 0);
  }
}

}  // namespace
}  // namespace conclave::kernels
