// SPDX-License-Identifier: Apache-2.0
// Products with activations in int8: the rounding against hand-made numbers,
// the fast forms against the definition.

#include "kernels/int8.h"

#include <cmath>
#include <limits>

#include "kernels/linear.h"
#include "kernels/moe.h"
#include "tests/parity/dense/fixture.h"
#include "tests/parity/dense/packed_weight.h"

namespace conclave::kernels {
namespace {

using testing::RelativeError;
using testing::Seeded;

TEST(RoundToInt8, BlocksHaveTheirOwnScale) {
  std::vector<float> x(64, 0.0f);
  x[0] = -127, x[1] = 2.5f, x[2] = 3.5f, x[3] = 63.49f;
  x[32] = 1.27f, x[63] = -0.0149f;
  std::vector<float> out(64);
  RoundToInt8(x, out);
  EXPECT_EQ(out[0], -127.0f);
  EXPECT_EQ(out[1], 2.0f);  // ties to even
  EXPECT_EQ(out[2], 4.0f);
  EXPECT_EQ(out[3], 63.0f);
  EXPECT_FLOAT_EQ(out[32], 1.27f);
  EXPECT_FLOAT_EQ(out[63], -0.01f);
  EXPECT_EQ(out[4], 0.0f);
}

TEST(RoundToInt8, TinyBlocksAreZerosAndBrokenOnesNaN) {
  std::vector<float> x(96, 1e-31f);
  x[40] = std::numeric_limits<float>::infinity();
  x[70] = std::numeric_limits<float>::quiet_NaN(), x[80] = 3;
  std::vector<float> out(96);
  RoundToInt8(x, out);
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_TRUE(std::isnan(out[40]) && std::isnan(out[32]));
  EXPECT_TRUE(std::isnan(out[64]) && std::isnan(out[80]));
}

std::vector<PackedFormat> Formats() {
  std::vector<PackedFormat> out;
  for (const int32_t bits : {4, 8}) {
    for (const int32_t group : {32, 64, 128}) {
      out.push_back({.name = "affine" + std::to_string(bits) + "_" +
                             std::to_string(group),
                     .bits = bits,
                     .group = group});
      PackedFormat symmetric = out.back();
      symmetric.name += "_symmetric";
      symmetric.biases = false;
      symmetric.scale_dtype = DType::kF16;
      out.push_back(symmetric);
    }
  }
  return out;
}

struct Int8Machine : Machine {
  explicit Int8Machine(Backend backend, int32_t threads = 1)
      : Machine(backend, threads) {
    context.activations = Activations::kInt8;
  }
};

using Param = std::tuple<std::string, size_t>;
class Int8Test : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(PinSimdTarget(std::get<0>(GetParam())).ok());
  }
  void TearDown() override { ASSERT_TRUE(PinSimdTarget("").ok()); }
  PackedFormat Format() const { return Formats()[std::get<1>(GetParam())]; }
};

double Limit(int64_t cols) { return 1.2e-7 * (2 + std::sqrt(cols)); }

TEST_P(Int8Test, MatMulAgreesWithPlain) {
  Int8Machine plain(Backend::kCpuPlain), fast(Backend::kCpu, 2);
  // Units that end early, and rows with more columns than one pass takes.
  for (const int64_t groups : {1, 3, 16, 17, 33}) {
    const int64_t cols = groups * Format().group;
    for (const int64_t rows : {1, 2, 3, 4, 7, 8, 9, 65}) {
      constexpr int64_t kOuts = 37;
      const PackedWeight w(3, Format(), kOuts, cols);
      const auto x = Seeded(4).Floats(rows * cols);
      Guarded want(rows * kOuts), got(rows * kOuts);
      ASSERT_TRUE(MatMul(plain.context, x, rows, w.view(), want.span()).ok());
      ASSERT_TRUE(MatMul(fast.context, x, rows, w.view(), got.span()).ok());
      EXPECT_TRUE(got.intact());
      EXPECT_LE(RelativeError(
                    got.span().data(), want.span().data(), got.span().size()),
                Limit(cols))
          << rows << " x " << cols;
    }
  }
}

// Nothing is lost beside float activations but what eight bits cannot hold.
TEST_P(Int8Test, StaysNearFloatActivations) {
  Machine exact(Backend::kCpuPlain);
  Int8Machine fast(Backend::kCpu);
  constexpr int64_t kRows = 5, kOuts = 64, kCols = 512;
  const PackedWeight w(11, Format(), kOuts, kCols);
  const auto x = Seeded(12).Floats(kRows * kCols);
  Guarded want(kRows * kOuts), got(kRows * kOuts);
  ASSERT_TRUE(MatMul(exact.context, x, kRows, w.view(), want.span()).ok());
  ASSERT_TRUE(MatMul(fast.context, x, kRows, w.view(), got.span()).ok());
  EXPECT_LE(
      RelativeError(got.span().data(), want.span().data(), got.span().size()),
      0.01);
}

TEST_P(Int8Test, BitsDependOnTheRowAndTheOutputAlone) {
  constexpr int64_t kRows = 15, kOuts = 70;
  const int64_t cols = 5 * Format().group;
  const PackedWeight w(9, Format(), kOuts, cols);
  const auto x = Seeded(10).Floats(kRows * cols);
  Int8Machine two(Backend::kCpu, 2), single(Backend::kCpu);
  Guarded whole(kRows * kOuts), one(kOuts), column(kRows);
  ASSERT_TRUE(MatMul(two.context, x, kRows, w.view(), whole.span()).ok());
  for (int64_t r = 0; r < kRows; ++r) {
    const std::span<const float> row(x.data() + r * cols, cols);
    ASSERT_TRUE(MatMul(single.context, row, 1, w.view(), one.span()).ok());
    for (int64_t o = 0; o < kOuts; ++o) {
      EXPECT_EQ(Bits(one.span())[o], Bits(whole.span())[r * kOuts + o]);
    }
  }
  for (const int64_t o : {0, 1, 31, 32, 69}) {
    const WeightView row = Rows(w.view(), o, 1);
    ASSERT_TRUE(MatMul(single.context, x, kRows, row, column.span()).ok());
    for (int64_t r = 0; r < kRows; ++r) {
      EXPECT_EQ(Bits(column.span())[r], Bits(whole.span())[r * kOuts + o]);
    }
  }
}

// The intermediate is rounded too. It differs in its last bits between the
// twins, so that a code may now and then be the next one: a step of 1/127 of
// its block's largest.
TEST_P(Int8Test, ExpertsAgreeWithPlain) {
  const int32_t kSlices = 4, kHidden = 256;
  for (const int32_t width : {Format().group, 3 * Format().group}) {
    const PackedWeight gate(1, Format(), kSlices * width, kHidden);
    const PackedWeight down(2, Format(), kSlices * kHidden, width);
    // The up's storage may be one that takes float activations.
    for (const PackedFormat& other :
         {Format(), PackedFormats().front(), PackedFormats().back()}) {
      if (kHidden % other.group != 0) continue;
      const PackedWeight up(5, other, kSlices * width, kHidden);
      const ShardLayerWeights weights{
          kSlices, width, kHidden, gate.view(), up.view(), down.view()};
      std::vector<int32_t> slice, row;
      for (int32_t s = 0; s < kSlices; ++s) {
        for (int32_t r = 0; r < 21; ++r) {
          if (s == 1 || (s == 2 && r != 5)) continue;  // empty; one row
          if (s == 3 && r % 2 == 0) continue;
          slice.push_back(s);
          row.push_back(r);
        }
      }
      const auto weight = Seeded(3).Floats(slice.size());
      const auto x = Seeded(4).Floats(22 * kHidden);
      Int8Machine plain(Backend::kCpuPlain), fast(Backend::kCpu, 2);
      Guarded want(22 * kHidden), got(22 * kHidden);
      const ExpertEntries entries{slice, row, weight};
      ASSERT_TRUE(
          ExpertFfn(plain.context, weights, entries, x, 22, want.span()).ok());
      ASSERT_TRUE(
          ExpertFfn(fast.context, weights, entries, x, 22, got.span()).ok());
      EXPECT_TRUE(got.intact());
      EXPECT_LE(RelativeError(
                    got.span().data(), want.span().data(), got.span().size()),
                1e-3);
    }
  }
}

TEST_P(Int8Test, RoutersKeepFloats) {
  constexpr int64_t kRows = 3, kCols = 256;
  const PackedWeight gate(1, Format(), 16, kCols);
  const auto x = Seeded(4).Floats(kRows * kCols);
  Machine floats(Backend::kCpu);
  Int8Machine int8(Backend::kCpu);
  std::vector<int32_t> ids[2];
  std::vector<float> weights[2];
  for (Machine* machine : {&floats, static_cast<Machine*>(&int8)}) {
    const int i = machine == &floats ? 0 : 1;
    ids[i].resize(kRows * 4);
    weights[i].resize(kRows * 4);
    ASSERT_TRUE(
        Route(machine->context, gate.view(), x, kRows, 4, ids[i], weights[i])
            .ok());
  }
  EXPECT_EQ(ids[0], ids[1]);
  EXPECT_EQ(Bits(std::span(weights[0])), Bits(std::span(weights[1])));
}

// Other storages know nothing of int8.
TEST(Int8Weights, OthersKeepTheirBits) {
  Machine floats(Backend::kCpu);
  Int8Machine int8(Backend::kCpu);
  for (const PackedFormat& format : PackedFormats()) {
    const PackedWeight w(3, format, 9, 384);
    const bool takes = TakesInt8(int8.context, w.view());
    EXPECT_EQ(takes, format.bits % 4 == 0 && format.name != "fp8");
    EXPECT_FALSE(TakesInt8(floats.context, w.view()));
    const auto x = Seeded(4).Floats(384);
    Guarded a(9), b(9);
    ASSERT_TRUE(MatMul(floats.context, x, 1, w.view(), a.span()).ok());
    ASSERT_TRUE(MatMul(int8.context, x, 1, w.view(), b.span()).ok());
    EXPECT_EQ(Bits(a.span()) == Bits(b.span()), !takes) << format.name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Simd,
    Int8Test,
    ::testing::Combine(::testing::ValuesIn(SupportedSimdTargets()),
                       ::testing::Range<size_t>(0, Formats().size())),
    [](const auto& info) {
      return std::get<0>(info.param) + "_" +
             Formats()[std::get<1>(info.param)].name;
    });

}  // namespace
}  // namespace conclave::kernels
