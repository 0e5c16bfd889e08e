// SPDX-License-Identifier: Apache-2.0
// Products on the GPU against the numbers that the formats define.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "common/bf16.h"
#include "kernels/device_moe.h"
#include "kernels/device_product.h"
#include "kernels/device_rows.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/require_gpu.h"
#include "tests/parity/dense/packed_weight.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

// bf16 rows: the products of bf16 numbers are exact, sums are float32.
constexpr double kNarrow = 2e-5;
// Weights are rounded to bf16 as well.
constexpr double kWide = 4e-3;
constexpr double kExact = 2e-6;
constexpr float kSentinel = -12345.75f;

std::unique_ptr<DeviceQueue> NewQueue() {
  auto queue = DeviceQueue::Create(0);
  EXPECT_TRUE(queue.ok()) << queue.status();
  return queue.ok() ? *std::move(queue) : nullptr;
}

WeightLayout LayoutOf(const WeightView& view) {
  WeightLayout out{.dtype = view.dtype, .rows = view.rows, .cols = view.cols};
  if (view.packing == Packing::kPlain) return out;
  out.dtype = view.packing == Packing::kAffine ? DType::kU32 : DType::kF8E4M3;
  out.bits = view.bits;
  out.group = view.group;
  out.scale_dtype = view.scale_dtype;
  out.biases = view.biases != nullptr;
  return out;
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

std::vector<std::string> Formats() {
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
    device = {memory.as<void>(), bf16};
  }
  int64_t rows, cols;
  std::vector<float> values;  // as products read them
  std::vector<float> full;    // before rounding
  DeviceBuffer memory, low;
  DeviceRows device;
};

// In double.
std::vector<float> Reference(const WeightView& w,
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

double Error(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return 1e9;
  return testing::RelativeError(got.data(), want.data(), got.size());
}

TEST(DeviceProduct, EqualsTheFormatsNumbers) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  for (const std::string& format : Formats()) {
    for (const auto& [outs, cols] :
         {std::pair<int64_t, int64_t>{48, 128}, {37, 384}, {2000, 640}}) {
      const AnyWeight weight(format, 7, outs, cols);
      const OnDevice device(*queue, {weight.view()});
      for (const int32_t rows : {1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 130, 300}) {
        for (const bool bf16 : {true, false}) {
          SCOPED_TRACE(format + " " + std::to_string(outs) + " x " +
                       std::to_string(cols) + ", rows " + std::to_string(rows) +
                       (bf16 ? " bf16" : " f32"));
          const TestRows x(*queue, 11 + rows, rows, cols, bf16);
          const DeviceBuffer out =
              Up(*queue, std::vector<float>(rows * outs, kSentinel));
          ASSERT_TRUE(DeviceProduct(queue.get(),
                                    device.matrix,
                                    x.device,
                                    nullptr,
                                    rows,
                                    1,
                                    out.as<float>())
                          .ok());
          const auto want = Reference(weight.view(), x.values, rows);
          EXPECT_LE(Error(Down(*queue, out.as<float>(), rows * outs), want),
                    !bf16       ? kExact
                    : rows > 64 ? kWide
                                : kNarrow);
        }
      }
    }
  }
}

TEST(DeviceProduct, LowPartsMakeRowsNearlyExact) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  for (const std::string format : {"bf16", "affine8", "affine4"}) {
    const AnyWeight weight(format, 7, 257, 512);
    const OnDevice device(*queue, {weight.view()});
    for (const int32_t rows : {1, 5, 40, 200}) {
      const TestRows x(*queue, 5, rows, 512, true);
      const DeviceBuffer out = Room(*queue, rows * 257 * sizeof(float));
      ASSERT_TRUE(DeviceProduct(queue.get(),
                                device.matrix,
                                x.device,
                                x.low.as<void>(),
                                rows,
                                1,
                                out.as<float>())
                      .ok());
      EXPECT_LE(Error(Down(*queue, out.as<float>(), rows * 257),
                      Reference(weight.view(), x.full, rows)),
                5e-5)
          << format << ", rows " << rows;
    }
  }
}

TEST(DeviceProduct, PartsStandSideBySide) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  const AnyWeight a("affine4", 1, 40, 256), b("affine4", 2, 4, 256);
  const OnDevice device(*queue, {a.view(), b.view()});
  const TestRows x(*queue, 3, 3, 256, true);
  const DeviceBuffer out = Room(*queue, 3 * 44 * sizeof(float));
  ASSERT_TRUE(
      DeviceProduct(
          queue.get(), device.matrix, x.device, nullptr, 3, 1, out.as<float>())
          .ok());
  const auto first = Reference(a.view(), x.values, 3);
  const auto second = Reference(b.view(), x.values, 3);
  std::vector<float> want;
  for (int r = 0; r < 3; ++r) {
    want.insert(want.end(), &first[r * 40], &first[r * 40] + 40);
    want.insert(want.end(), &second[r * 4], &second[r * 4] + 4);
  }
  EXPECT_LE(Error(Down(*queue, out.as<float>(), 3 * 44), want), kNarrow);
}

TEST(DeviceProduct, PlanesAddUp) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  for (const std::string& format : Formats()) {
    const AnyWeight weight(format, 7, 80, 1152);
    const OnDevice device(*queue, {weight.view()});
    for (const int32_t rows : {1, 11, 50}) {
      const int32_t planes =
          DevicePlanes(*queue, device.matrix, rows, /*bf16=*/true);
      ASSERT_GE(planes, 1);
      ASSERT_LE(planes, kPlanesMax);
      const TestRows x(*queue, 5, rows, 1152, true);
      const size_t size = rows * 80;
      const DeviceBuffer out = Room(*queue, planes * size * sizeof(float));
      ASSERT_TRUE(DeviceProduct(queue.get(),
                                device.matrix,
                                x.device,
                                nullptr,
                                rows,
                                planes,
                                out.as<float>())
                      .ok());
      const auto all = Down(*queue, out.as<float>(), planes * size);
      std::vector<float> sum(size);
      for (size_t i = 0; i < all.size(); ++i) sum[i % size] += all[i];
      EXPECT_LE(Error(sum, Reference(weight.view(), x.values, rows)), kNarrow)
          << format << ", rows " << rows << ", planes " << planes;
    }
  }
}

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
  const auto normed = Down(*queue, u.as<float>(), rows * kHidden);
  for (int32_t r = 0; r < rows; ++r) {
    double square = 0;
    for (int64_t i = 0; i < kHidden; ++i) {
      square += static_cast<double>(normed[r * kHidden + i]) *
                normed[r * kHidden + i];
    }
    EXPECT_NEAR(square / kHidden, 1.0, 1e-4) << "row " << r;
  }
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
