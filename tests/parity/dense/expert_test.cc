// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <string>

#include "kernels/moe.h"
#include "tests/parity/dense/fixture.h"

namespace conclave::kernels {
namespace {

using testing::RelativeError;
using testing::Seeded;

// Random weights of every slice, so that a token at the wrong expert is seen.
struct Experts {
  Experts(int32_t slices, int32_t width, int32_t hidden, DType dtype)
      : gate(41, dtype, int64_t{slices} * width, hidden, 3),
        up(40, dtype, int64_t{slices} * width, hidden, 2),
        down(42, dtype, int64_t{slices} * hidden, width, 1),
        weights{slices, width, hidden, gate.view(), up.view(), down.view()} {}
  TestWeight gate, up, down;
  ShardLayerWeights weights;
};

struct Entries {
  std::vector<int32_t> slice, row;
  std::vector<float> weight;
  ExpertEntries view() const { return {slice, row, weight}; }
  Entries OfRow(int32_t wanted) const {
    Entries out;
    for (size_t e = 0; e < row.size(); ++e) {
      if (row[e] == wanted) out.Add(slice[e], 0, weight[e]);
    }
    return out;
  }
  void Add(int32_t s, int32_t r, float w) {
    slice.push_back(s), row.push_back(r), weight.push_back(w);
  }
};

// Who goes where.
enum class Load { kNone, kUneven, kOneSlice, kTwoOfThreeRows, kAll };

Entries MakeEntries(Load load, int32_t slices, int32_t rows) {
  Entries out;
  Seeded seeded(43);
  for (int32_t s = 0; s < slices; ++s) {
    for (int32_t r = 0; r < rows; ++r) {
      const bool some = seeded.Int(4) == 0;
      const bool take = (load == Load::kUneven && some && s % 3 != 1) ||
                        (load == Load::kOneSlice && s == slices - 1) ||
                        (load == Load::kTwoOfThreeRows && r % 3 != 1 && some) ||
                        load == Load::kAll;
      if (take) out.Add(s, r, static_cast<float>(seeded.Real()));
    }
  }
  return out;
}

// The definition in double, straight from the stored weights.
double At(const WeightView& w, int64_t row, int64_t col) {
  const int64_t i = row * w.row_stride + col;
  if (w.dtype == DType::kF32) return static_cast<const float*>(w.data)[i];
  const uint32_t bits = static_cast<const uint16_t*>(w.data)[i];
  return std::bit_cast<float>(bits << 16);
}

std::vector<float> Reference(const ShardLayerWeights& w,
                             const Entries& entries,
                             const std::vector<float>& x,
                             int64_t rows) {
  std::vector<double> sums(rows * w.hidden);
  for (size_t e = 0; e < entries.row.size(); ++e) {
    const float* in = &x[entries.row[e] * w.hidden];
    const int64_t first = int64_t{1} * w.width * entries.slice[e];
    for (int32_t i = 0; i < w.width; ++i) {
      double gate = 0, up = 0;
      for (int32_t h = 0; h < w.hidden; ++h) {
        gate += At(w.gate, first + i, h) * in[h];
        up += At(w.up, first + i, h) * in[h];
      }
      const double act = gate / (1 + std::exp(-gate)) * up;
      for (int32_t h = 0; h < w.hidden; ++h) {
        sums[entries.row[e] * w.hidden + h] +=
            entries.weight[e] * act *
            At(w.down, int64_t{w.hidden} * entries.slice[e] + h, i);
      }
    }
  }
  return {sums.begin(), sums.end()};
}

using ExpertTest = EveryTarget;

TEST_P(ExpertTest, BothTwinsAgreeWithTheDefinition) {
  struct Case {
    int32_t slices, width, hidden, rows;
    DType dtype;
    Load load;
  };
  const Case cases[] = {
      {4, 16, 32, 1, DType::kF32, Load::kAll},
      {5, 48, 40, 3, DType::kBF16, Load::kUneven},
      {3, 20, 33, 70, DType::kBF16, Load::kOneSlice},
      {7, 64, 96, 17, DType::kF32, Load::kTwoOfThreeRows},
      {2, 33, 64, 131, DType::kBF16, Load::kAll},
      {6, 64, 64, 9, DType::kBF16, Load::kNone},
      {16, 64, 64, 20, DType::kBF16, Load::kUneven},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.slices << " " << c.width);
    const Experts experts(c.slices, c.width, c.hidden, c.dtype);
    const Entries entries = MakeEntries(c.load, c.slices, c.rows);
    const auto x = Seeded(44).Floats(c.rows * c.hidden);
    const auto want = Reference(experts.weights, entries, x, c.rows);
    for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
      Machine machine(backend, backend == Backend::kCpu ? 2 : 1);
      Guarded got(want.size());
      ASSERT_TRUE(ExpertFfn(machine.context,
                            experts.weights,
                            entries.view(),
                            x,
                            c.rows,
                            got.span())
                      .ok());
      EXPECT_TRUE(got.intact());
      EXPECT_LE(RelativeError(got.span().data(), want.data(), want.size()),
                2e-6);
    }
  }
}

TEST_P(ExpertTest, ARowsBitsDependOnItsOwnEntriesOnly) {
  constexpr int32_t kSlices = 6, kHidden = 96, kRows = 150;
  for (int32_t width : {48, 64}) {
    const Experts experts(kSlices, width, kHidden, DType::kBF16);
    const auto x = Seeded(45).Floats(kRows * kHidden);
    for (Load load : {Load::kTwoOfThreeRows, Load::kAll, Load::kOneSlice}) {
      const Entries entries = MakeEntries(load, kSlices, kRows);
      Machine one(Backend::kCpu);
      std::vector<uint32_t> alone;
      for (int32_t r = 0; r < kRows; ++r) {
        Guarded out(kHidden);
        const Entries own = entries.OfRow(r);
        ASSERT_TRUE(ExpertFfn(one.context,
                              experts.weights,
                              own.view(),
                              std::span(x).subspan(r * kHidden, kHidden),
                              1,
                              out.span())
                        .ok());
        for (uint32_t b : Bits(out.span())) alone.push_back(b);
      }
      for (int32_t threads : {1, 2, 3}) {
        Machine many(Backend::kCpu, threads);
        Guarded out(kRows * kHidden);
        ASSERT_TRUE(ExpertFfn(many.context,
                              experts.weights,
                              entries.view(),
                              x,
                              kRows,
                              out.span())
                        .ok());
        EXPECT_EQ(Bits(out.span()), alone) << threads << " threads";
      }
    }
  }
}

TEST_P(ExpertTest, RowsWithoutEntriesGetZeros) {
  const Experts experts(4, 16, 24, DType::kF32);
  const auto x = Seeded(46).Floats(5 * 24);
  Entries entries;
  entries.Add(2, 3, 1.0f);
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    Machine machine(backend);
    Guarded out(5 * 24);
    ASSERT_TRUE(
        ExpertFfn(
            machine.context, experts.weights, entries.view(), x, 5, out.span())
            .ok());
    for (int32_t i = 0; i < 5 * 24; ++i) {
      EXPECT_EQ(out.span()[i] == 0.0f, i / 24 != 3) << i;
    }
  }
}

// Far from zero exp would overflow; there silu is x or nothing.
TEST_P(ExpertTest, SiluIsSaneEverywhere) {
  for (float g : {-1e30f, -200.0f, -90.0f, -1.0f, 0.0f, 2.0f, 90.0f, 1e30f}) {
    const std::vector<float> gate = {g}, one = {1.0f};
    const ShardLayerWeights weights{1,
                                    1,
                                    1,
                                    {gate.data(), DType::kF32, 1, 1, 1},
                                    {one.data(), DType::kF32, 1, 1, 1},
                                    {one.data(), DType::kF32, 1, 1, 1}};
    Entries entries;
    entries.Add(0, 0, 1.0f);
    Machine fast(Backend::kCpu);
    std::vector<float> x = {1.0f}, out = {7.0f};
    ASSERT_TRUE(
        ExpertFfn(fast.context, weights, entries.view(), x, 1, out).ok());
    const double exact = double{g} / (1 + std::exp(-double{g}));
    EXPECT_NEAR(out[0], exact, std::abs(exact) * 5e-7 + 1e-37) << g;
  }
}

TEST_P(ExpertTest, SharedExpertAgreesWithPlain) {
  Machine plain(Backend::kCpuPlain), fast(Backend::kCpu, 2);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int32_t rows : {1, 2, 9, 70}) {
      const int32_t hidden = 72, width = 40;
      const TestWeight gate(47, dtype, width, hidden, 2);
      const TestWeight up(48, dtype, width, hidden, 0);
      const TestWeight down(49, dtype, hidden, width, 1);
      const TestWeight router(50, dtype, 1, hidden, 0);
      const SharedExpertWeights weights{
          gate.view(), up.view(), down.view(), router.view()};
      const auto u = Seeded(51).Floats(rows * hidden);
      Guarded want(rows * hidden), got(rows * hidden), first(hidden);
      ASSERT_TRUE(
          SharedExpert(plain.context, weights, u, rows, want.span()).ok());
      ASSERT_TRUE(
          SharedExpert(fast.context, weights, u, rows, got.span()).ok());
      EXPECT_TRUE(got.intact());
      EXPECT_LE(
          RelativeError(got.span().data(), want.span().data(), rows * hidden),
          2e-6);
      ASSERT_TRUE(
          SharedExpert(
              fast.context, weights, std::span(u).last(hidden), 1, first.span())
              .ok());
      EXPECT_EQ(Bits(first.span()), Bits(got.span().last(hidden)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd,
                         ExpertTest,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

}  // namespace
}  // namespace conclave::kernels
