// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <cmath>

#include "tests/parity/dense/fixture.h"

namespace conclave::kernels {
namespace {

using ::testing::HasSubstr;
using testing::RelativeError;
using testing::Seeded;

struct Shape {
  int64_t rows, outs, cols;
};

// Around every edge: tiles of 4 rows and 4 or 8 outputs, steps of up to 32
// columns, blocks of 32 outputs and 64 rows.
constexpr Shape kShapes[] = {{1, 1, 1},
                             {1, 3, 7},
                             {2, 9, 31},
                             {3, 33, 32},
                             {4, 8, 33},
                             {5, 12, 63},
                             {7, 5, 64},
                             {1, 64, 65},
                             {8, 40, 96},
                             {65, 31, 127},
                             {13, 34, 256},
                             {70, 70, 257},
                             {130, 37, 40},
                             {1, 300, 1024}};

using LinearTest = EveryTarget;

TEST_P(LinearTest, MatMulAgreesWithPlain) {
  Machine plain(Backend::kCpuPlain), fast(Backend::kCpu, 2);
  for (const Shape& s : kShapes) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.outs << " x "
                                        << s.cols << " " << Name(dtype));
      const TestWeight w(3, dtype, s.outs, s.cols, 5);
      const auto x = Seeded(4).Floats(s.rows * s.cols);
      Guarded want(s.rows * s.outs), got(s.rows * s.outs);
      ASSERT_TRUE(MatMul(plain.context, x, s.rows, w.view(), want.span()).ok());
      ASSERT_TRUE(MatMul(fast.context, x, s.rows, w.view(), got.span()).ok());
      EXPECT_TRUE(got.intact());
      // A sum of k products of random sign errs by about sqrt(k) roundings.
      const double limit = 1.2e-7 * (2 + std::sqrt(s.cols));
      EXPECT_LE(RelativeError(
                    got.span().data(), want.span().data(), got.span().size()),
                limit);
    }
  }
}

TEST_P(LinearTest, ARowsBitsDependOnNothingElse) {
  constexpr int64_t kRows = 70, kOuts = 75, kCols = 291;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const TestWeight w(7, dtype, kOuts, kCols, 1);
    const auto x = Seeded(8).Floats(kRows * kCols);
    std::vector<uint32_t> alone;
    Machine one(Backend::kCpu, 1);
    for (int64_t r = 0; r < kRows; ++r) {
      Guarded out(kOuts);
      ASSERT_TRUE(MatMul(one.context,
                         std::span(x).subspan(r * kCols, kCols),
                         1,
                         w.view(),
                         out.span())
                      .ok());
      for (uint32_t b : Bits(out.span())) alone.push_back(b);
    }
    for (int32_t threads : {1, 2, 3}) {
      Machine many(Backend::kCpu, threads);
      for (int64_t rows = 2; rows <= kRows; ++rows) {
        Guarded out(rows * kOuts);
        ASSERT_TRUE(MatMul(many.context,
                           std::span(x).first(rows * kCols),
                           rows,
                           w.view(),
                           out.span())
                        .ok());
        ASSERT_EQ(Bits(out.span()),
                  std::vector(alone.begin(), alone.begin() + rows * kOuts))
            << rows << " rows, " << threads << " threads";
      }
    }
  }
}

// Whether an output stands at the start or the end of a tile must not matter:
// a shard's slice of the rows gives the same numbers as the whole.
TEST_P(LinearTest, AnOutputsBitsDoNotDependOnItsPlace) {
  constexpr int64_t kRows = 6, kOuts = 45, kCols = 100;
  Machine fast(Backend::kCpu, 2);
  const TestWeight w(9, DType::kBF16, kOuts, kCols, 0);
  const auto x = Seeded(10).Floats(kRows * kCols);
  Guarded whole(kRows * kOuts);
  ASSERT_TRUE(MatMul(fast.context, x, kRows, w.view(), whole.span()).ok());
  for (int64_t o = 0; o < kOuts; ++o) {
    Guarded one(kRows);
    const WeightView row = Rows(w.view(), o, 1);
    ASSERT_TRUE(MatMul(fast.context, x, kRows, row, one.span()).ok());
    for (int64_t r = 0; r < kRows; ++r) {
      EXPECT_EQ(Bits(one.span())[r], Bits(whole.span())[r * kOuts + o]);
    }
  }
}

TEST_P(LinearTest, RmsNormAgreesWithPlainAndMayAlias) {
  Machine plain(Backend::kCpuPlain), fast(Backend::kCpu, 2);
  for (int64_t cols : {1, 3, 16, 100, 256, 4096}) {
    const int64_t rows = 37;
    auto x = Seeded(11).Floats(rows * cols, 3.0);
    const auto w = Seeded(12).Floats(cols);
    Guarded want(rows * cols), got(rows * cols);
    ASSERT_TRUE(RmsNorm(plain.context, x, rows, w, 1e-6f, want.span()).ok());
    ASSERT_TRUE(RmsNorm(fast.context, x, rows, w, 1e-6f, got.span()).ok());
    EXPECT_TRUE(got.intact());
    EXPECT_LE(RelativeError(got.span().data(), want.span().data(), rows * cols),
              1e-6);
    double squares = 0;
    for (int64_t i = 0; i < cols; ++i) squares += double{x[i]} * x[i];
    const double exact = x[0] / std::sqrt(squares / cols + 1e-6) * w[0];
    EXPECT_NEAR(got.span()[0], exact, std::abs(exact) * 1e-6);
    ASSERT_TRUE(RmsNorm(fast.context, x, rows, w, 1e-6f, x).ok());
    EXPECT_EQ(Bits(x), Bits(got.span()));
  }
}

TEST_P(LinearTest, EmbedCopiesTheRowsOfTheIds) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int64_t cols : {1, 15, 64, 77}) {
      Machine plain(Backend::kCpuPlain), fast(Backend::kCpu);
      const TestWeight table(13, dtype, 9, cols, 3);
      const std::vector<int32_t> ids = {8, 0, 3, 3, 7};
      Guarded want(ids.size() * cols), got(ids.size() * cols);
      ASSERT_TRUE(Embed(plain.context, table.view(), ids, want.span()).ok());
      ASSERT_TRUE(Embed(fast.context, table.view(), ids, got.span()).ok());
      EXPECT_TRUE(got.intact());
      EXPECT_EQ(Bits(got.span()), Bits(want.span()));
    }
  }
}

TEST_P(LinearTest, AddToAddsEveryElement) {
  for (size_t n : {size_t{1}, size_t{17}, size_t{100'003}}) {
    Machine plain(Backend::kCpuPlain), fast(Backend::kCpu, 3);
    const auto y = Seeded(14).Floats(n);
    auto want = Seeded(15).Floats(n);
    auto got = want;
    ASSERT_TRUE(AddTo(plain.context, y, want).ok());
    ASSERT_TRUE(AddTo(fast.context, y, got).ok());
    EXPECT_EQ(Bits(got), Bits(want));
  }
}

INSTANTIATE_TEST_SUITE_P(Simd,
                         LinearTest,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

TEST(ContextTest, PinNamesTheSupportedTargets) {
  const absl::Status status = PinSimdTarget("AVX9");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(SupportedSimdTargets().front()));
}

TEST(ContextTest, WorkspaceIsAlignedGrowsAndIsReused) {
  Workspace workspace;
  float* first = nullptr;
  size_t bytes = 0;
  for (int step = 0; step < 3; ++step) {
    Workspace::Scope scope(&workspace);
    std::span<float> a = workspace.Floats(3);
    std::span<int32_t> b = workspace.Ints(1'000'000);
    std::span<float> c = workspace.Floats(5);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(c.data()) % 64, 0u);
    a[2] = 1, b[0] = 2, b[999'999] = 3, c[0] = 4;
    {
      Workspace::Scope inner(&workspace);
      workspace.Floats(1)[0] = 5;
    }
    EXPECT_EQ(a[2], 1);
    EXPECT_EQ(b[0], 2);
    EXPECT_EQ(b[999'999], 3);
    EXPECT_EQ(c[0], 4);
    if (step == 0) first = a.data(), bytes = workspace.allocated_bytes();
    EXPECT_EQ(a.data(), first);
    EXPECT_EQ(workspace.allocated_bytes(), bytes);
  }
}

}  // namespace
}  // namespace conclave::kernels
