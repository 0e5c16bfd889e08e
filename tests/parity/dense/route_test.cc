// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/moe.h"
#include "tests/parity/dense/fixture.h"

namespace conclave::kernels {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using testing::Seeded;

using RouteTest = EveryTarget;

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routed RunRoute(const Context& context,
                const WeightView& gate,
                const std::vector<float>& u,
                int32_t top_k) {
  const int64_t rows = static_cast<int64_t>(u.size()) / gate.cols;
  Routed out{std::vector<int32_t>(rows * top_k, -1),
             std::vector<float>(rows * top_k, -1)};
  EXPECT_TRUE(Route(context, gate, u, rows, top_k, out.ids, out.weights).ok());
  return out;
}

TEST_P(RouteTest, AgreesWithPlain) {
  Machine plain(Backend::kCpuPlain), fast(Backend::kCpu, 2);
  for (int64_t experts : {4, 16, 23, 256}) {
    for (int32_t top_k : {1, 4}) {
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        const TestWeight gate(21, dtype, experts, 128, 2);
        const auto u = Seeded(22).Floats(90 * 128, 0.3);
        const Routed want = RunRoute(plain.context, gate.view(), u, top_k);
        const Routed got = RunRoute(fast.context, gate.view(), u, top_k);
        EXPECT_EQ(got.ids, want.ids);
        EXPECT_LE(
            testing::RelativeError(
                got.weights.data(), want.weights.data(), want.weights.size()),
            1e-5);
      }
    }
  }
}

TEST_P(RouteTest, WeightsAreTheSoftmaxOfTheChosen) {
  const std::vector<float> gate = {0.5f, 2, -1, 1};  // [4 experts, 1]
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    Machine machine(backend);
    const Routed got = RunRoute(
        machine.context, {gate.data(), DType::kF32, 4, 1, 1}, {1, -1}, 2);
    EXPECT_THAT(got.ids, ElementsAre(1, 3, 2, 0));
    const double first = 1 / (1 + std::exp(-1.0));
    const double second = 1 / (1 + std::exp(-1.5));
    EXPECT_NEAR(got.weights[0], first, 1e-6);
    EXPECT_NEAR(got.weights[1], 1 - first, 1e-6);
    EXPECT_NEAR(got.weights[2], second, 1e-6);
    EXPECT_NEAR(got.weights[3], 1 - second, 1e-6);
  }
}

TEST_P(RouteTest, TheLowestIndexWinsTies) {
  std::vector<float> gate(40, 1.0f);
  gate[3] = 0.5f;
  gate[37] = 2.0f;
  gate[38] = 2.0f;
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    Machine machine(backend);
    const Routed got =
        RunRoute(machine.context, {gate.data(), DType::kF32, 40, 1, 1}, {1}, 6);
    EXPECT_THAT(got.ids, ElementsAre(37, 38, 0, 1, 2, 4));
  }
}

TEST_P(RouteTest, HugeLogitsDoNotOverflow) {
  const std::vector<float> gate = {800, 1000, -1000, 0};
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    Machine machine(backend);
    const Routed got =
        RunRoute(machine.context, {gate.data(), DType::kF32, 4, 1, 1}, {1}, 3);
    EXPECT_THAT(got.ids, ElementsAre(1, 0, 3));
    EXPECT_THAT(got.weights, ElementsAre(1.0f, 0.0f, 0.0f));
  }
}

// Broken numbers may give broken weights, but never an index out of range.
TEST_P(RouteTest, NotANumberKeepsIdsValid) {
  std::vector<float> gate(20, std::nanf(""));
  gate[15] = 1;
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    Machine machine(backend);
    Routed got =
        RunRoute(machine.context, {gate.data(), DType::kF32, 20, 1, 1}, {1}, 5);
    std::sort(got.ids.begin(), got.ids.end());
    EXPECT_THAT(got.ids,
                Each(::testing::AllOf(::testing::Ge(0), ::testing::Lt(20))));
    EXPECT_EQ(std::unique(got.ids.begin(), got.ids.end()), got.ids.end());
  }
}

TEST_P(RouteTest, ARowsBitsDependOnNothingElse) {
  constexpr int64_t kRows = 70, kHidden = 96;
  const TestWeight gate(23, DType::kBF16, 37, kHidden, 0);
  const auto u = Seeded(24).Floats(kRows * kHidden);
  Machine one(Backend::kCpu), many(Backend::kCpu, 3);
  const Routed all = RunRoute(many.context, gate.view(), u, 4);
  for (int64_t r = 0; r < kRows; ++r) {
    const std::vector<float> row(u.begin() + r * kHidden,
                                 u.begin() + (r + 1) * kHidden);
    const Routed alone = RunRoute(one.context, gate.view(), row, 4);
    for (int j = 0; j < 4; ++j) {
      EXPECT_EQ(alone.ids[j], all.ids[r * 4 + j]);
      EXPECT_EQ(alone.weights[j], all.weights[r * 4 + j]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd,
                         RouteTest,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

}  // namespace
}  // namespace conclave::kernels
