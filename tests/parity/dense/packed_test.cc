// SPDX-License-Identifier: Apache-2.0
// Packed weights: the definition against hand-made numbers, the fast forms
// against the definition.

#include <cmath>
#include <memory>

#include "kernels/linear.h"
#include "kernels/moe.h"
#include "tests/parity/dense/fixture.h"
#include "tests/parity/dense/packed_weight.h"

namespace conclave::kernels {
namespace {

using testing::RelativeError;
using testing::Seeded;

std::vector<float> Row(const WeightView& w, int64_t row) {
  std::vector<float> out(static_cast<size_t>(w.cols));
  DecodeRow(w, row, out);
  return out;
}

// docs/qwen3.5-moe 2.6: element j of a row is (word[j/8] >> 4*(j%8)) & 15.
TEST(DecodeRow, AffineTakesTheLowestBitsFirst) {
  const std::vector<uint32_t> words = {0x76543210, 0xFEDCBA98, 0, 0x80000000};
  const uint16_t scale = 0xBF80, bias = 0x4000;  // -1, 2
  const WeightView w{.data = words.data(),
                     .dtype = DType::kU8,
                     .rows = 1,
                     .cols = 32,
                     .row_stride = 16,
                     .packing = Packing::kAffine,
                     .bits = 4,
                     .group = 32,
                     .scales = &scale,
                     .biases = &bias,
                     .scale_stride = 1};
  const auto row = Row(w, 0);
  for (int j = 0; j < 16; ++j) EXPECT_EQ(row[j], 2.0f - j) << j;
  EXPECT_EQ(row[31], 2.0f - 8);
  WeightView symmetric = w;
  symmetric.biases = nullptr;  // 8 in scales
  EXPECT_EQ(Row(symmetric, 0)[15], -7.0f);
  // Three bits: 0b101 at bit 30, over a word's border.
  const std::vector<uint8_t> bytes = {0, 0, 0, 0x40, 0x01, 0, 0, 0, 0, 0, 0, 0};
  WeightView three = w;
  three.data = bytes.data();
  three.bits = 3;
  three.row_stride = 12;
  EXPECT_EQ(Row(three, 0)[10], 2.0f - 5);
  EXPECT_EQ(Row(three, 0)[9], 2.0f);
}

TEST(DecodeRow, Fp8IsE4M3InBlocks) {
  std::vector<uint8_t> codes(129 * 160, 0x38);                // 1.0
  codes[0] = 0x7E, codes[1] = 0x01, codes[2] = 0x08;          // 448, 2^-9, 2^-6
  codes[3] = 0xB8, codes[4] = 0x07, codes[128 * 160] = 0x40;  // -1, 7/512, 2
  const std::vector<uint16_t> scales = {0x3F80, 0x4000, 0x4080, 0x4100};
  const WeightView w{.data = codes.data(),
                     .dtype = DType::kU8,
                     .rows = 129,
                     .cols = 160,
                     .row_stride = 160,
                     .packing = Packing::kFp8Block,
                     .group = 128,
                     .scales = scales.data(),
                     .scale_stride = 2};
  const auto row = Row(w, 0);
  EXPECT_EQ(row[0], 448.0f);
  EXPECT_EQ(row[1], 0x1p-9f);
  EXPECT_EQ(row[2], 0x1p-6f);
  EXPECT_EQ(row[3], -1.0f);
  EXPECT_EQ(row[4], 7 * 0x1p-9f);
  EXPECT_EQ(row[127], 1.0f);
  EXPECT_EQ(row[128], 2.0f);
  EXPECT_EQ(Row(w, 128)[0], 8.0f);
  EXPECT_EQ(Row(w, 128)[128], 8.0f);
  // A view that begins inside of a block keeps the tensor's blocks.
  EXPECT_EQ(Row(Rows(w, 100, 29), 28)[0], 8.0f);
}

TEST(DecodeRow, ScalesInHalfPrecision) {
  const std::vector<uint8_t> codes(16, 0x99);
  const std::vector<uint16_t> scales = {0x3C00};  // 1
  WeightView w{.data = codes.data(),
               .dtype = DType::kU8,
               .rows = 1,
               .cols = 32,
               .row_stride = 16,
               .packing = Packing::kAffine,
               .bits = 4,
               .group = 32,
               .scale_dtype = DType::kF16,
               .scales = scales.data(),
               .scale_stride = 1};
  EXPECT_EQ(Row(w, 0)[0], 1.0f);
  const std::vector<uint16_t> tiny = {0x8001};  // -2^-24
  w.scales = tiny.data();
  EXPECT_EQ(Row(w, 0)[0], -0x1p-24f);
}

using Param = std::tuple<std::string, size_t, Activations>;
class PackedTest : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(PinSimdTarget(std::get<0>(GetParam())).ok());
  }
  void TearDown() override { ASSERT_TRUE(PinSimdTarget("").ok()); }
  PackedFormat Format() const {
    return PackedFormats()[std::get<1>(GetParam())];
  }
  // A machine whose products round their activations, if the test asks.
  std::unique_ptr<Machine> Make(Backend backend, int32_t threads = 1) const {
    auto machine = std::make_unique<Machine>(backend, threads);
    machine->context.activations = std::get<2>(GetParam());
    return machine;
  }
};

double Limit(int64_t cols) { return 1.2e-7 * (2 + std::sqrt(cols)); }

TEST_P(PackedTest, MatMulAgreesWithPlain) {
  const auto plain = Make(Backend::kCpuPlain), fast = Make(Backend::kCpu, 2);
  for (const int64_t cols : {128, 384, 1024}) {
    for (const int64_t rows : {1, 2, 3, 4, 7, 33}) {
      constexpr int64_t kOuts = 141;
      const PackedWeight w(3, Format(), kOuts, cols);
      const auto x = Seeded(4).Floats(rows * cols);
      Guarded want(rows * kOuts), got(rows * kOuts);
      ASSERT_TRUE(MatMul(plain->context, x, rows, w.view(), want.span()).ok());
      ASSERT_TRUE(MatMul(fast->context, x, rows, w.view(), got.span()).ok());
      EXPECT_TRUE(got.intact());
      EXPECT_LE(RelativeError(
                    got.span().data(), want.span().data(), got.span().size()),
                Limit(cols))
          << rows << " x " << cols;
    }
  }
}

TEST_P(PackedTest, BitsDependOnTheRowAndTheOutputAlone) {
  constexpr int64_t kRows = 6, kOuts = 140, kCols = 256;
  const auto fast = Make(Backend::kCpu, 2);
  const PackedWeight w(9, Format(), kOuts, kCols);
  const auto x = Seeded(10).Floats(kRows * kCols);
  Guarded whole(kRows * kOuts), one(kOuts), single(kRows);
  ASSERT_TRUE(MatMul(fast->context, x, kRows, w.view(), whole.span()).ok());
  for (int64_t r = 0; r < kRows; ++r) {
    const std::span<const float> row(x.data() + r * kCols, kCols);
    ASSERT_TRUE(MatMul(fast->context, row, 1, w.view(), one.span()).ok());
    for (int64_t o = 0; o < kOuts; ++o) {
      EXPECT_EQ(Bits(one.span())[o], Bits(whole.span())[r * kOuts + o]);
    }
  }
  for (const int64_t o : {0, 1, 127, 128, 139}) {
    const WeightView row = Rows(w.view(), o, 1);
    ASSERT_TRUE(MatMul(fast->context, x, kRows, row, single.span()).ok());
    for (int64_t r = 0; r < kRows; ++r) {
      EXPECT_EQ(Bits(single.span())[r], Bits(whole.span())[r * kOuts + o]);
    }
  }
}

TEST_P(PackedTest, EmbedDecodesTheRowsOfTheIds) {
  const auto fast = Make(Backend::kCpu);
  const PackedWeight w(7, Format(), 20, 128);
  const std::vector<int32_t> ids = {19, 0, 7, 7};
  Guarded got(ids.size() * 128);
  ASSERT_TRUE(Embed(fast->context, w.view(), ids, got.span()).ok());
  for (size_t r = 0; r < ids.size(); ++r) {
    const auto want = Row(w.view(), ids[r]);
    for (size_t c = 0; c < want.size(); ++c) {
      EXPECT_EQ(got.span()[r * 128 + c], want[c]);
    }
  }
}

TEST_P(PackedTest, ExpertsAgreeWithPlain) {
  constexpr int32_t kSlices = 3, kWidth = 128, kHidden = 256;
  const PackedWeight gate(1, Format(), kSlices * kWidth, kHidden);
  const PackedWeight down(2, Format(), kSlices * kHidden, kWidth);
  // The up's storage may be another one, with another order of inputs.
  const auto formats = PackedFormats();
  for (const PackedFormat& other :
       {Format(), formats.front(), formats.back()}) {
    const PackedWeight up(5, other, kSlices * kWidth, kHidden);
    const ShardLayerWeights weights{
        kSlices, kWidth, kHidden, gate.view(), up.view(), down.view()};
    const std::vector<int32_t> slice = {0, 0, 0, 0, 0, 2, 2};
    const std::vector<int32_t> row = {0, 1, 2, 3, 5, 1, 5};
    const auto weight = Seeded(3).Floats(slice.size());
    const auto x = Seeded(4).Floats(6 * kHidden);
    const auto plain = Make(Backend::kCpuPlain), fast = Make(Backend::kCpu, 2);
    Guarded want(6 * kHidden), got(6 * kHidden);
    const ExpertEntries entries{slice, row, weight};
    ASSERT_TRUE(
        ExpertFfn(plain->context, weights, entries, x, 6, want.span()).ok());
    ASSERT_TRUE(
        ExpertFfn(fast->context, weights, entries, x, 6, got.span()).ok());
    EXPECT_LE(
        RelativeError(got.span().data(), want.span().data(), got.span().size()),
        4e-6);
  }
}

// Fp8 alone may have columns that end inside of a block and of a step.
class Fp8Test : public EveryTarget {};

TEST_P(Fp8Test, ColumnsMayEndInABlock) {
  Machine plain(Backend::kCpuPlain), fast(Backend::kCpu);
  for (const int64_t cols : {1, 31, 129, 300}) {
    const PackedWeight w(5, PackedFormats().back(), 9, cols);
    const auto x = Seeded(6).Floats(3 * cols);
    Guarded want(3 * 9), got(3 * 9);
    ASSERT_TRUE(MatMul(plain.context, x, 3, w.view(), want.span()).ok());
    ASSERT_TRUE(MatMul(fast.context, x, 3, w.view(), got.span()).ok());
    EXPECT_LE(
        RelativeError(got.span().data(), want.span().data(), got.span().size()),
        Limit(cols))
        << cols;
  }
}

INSTANTIATE_TEST_SUITE_P(Simd,
                         Fp8Test,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

INSTANTIATE_TEST_SUITE_P(
    Simd,
    PackedTest,
    ::testing::Combine(::testing::ValuesIn(SupportedSimdTargets()),
                       ::testing::Range<size_t>(0, PackedFormats().size()),
                       ::testing::Values(Activations::kF32,
                                         Activations::kInt8)),
    [](const auto& info) {
      const bool int8 = std::get<2>(info.param) == Activations::kInt8;
      return std::get<0>(info.param) + "_" +
             PackedFormats()[std::get<1>(info.param)].name +
             (int8 ? "_int8" : "");
    });

}  // namespace
}  // namespace conclave::kernels
