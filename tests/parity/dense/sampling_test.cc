// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/parity/dense/fixture.h"

namespace conclave::kernels {
namespace {

using ::testing::ElementsAre;
using testing::Seeded;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

using SamplingTest = EveryTarget;

TEST_P(SamplingTest, BothTwinsFindTheSame) {
  Machine plain(Backend::kCpuPlain), fast(Backend::kCpu);
  for (size_t n : {1u, 2u, 15u, 16u, 17u, 100u, 2048u, 50'001u}) {
    auto logits = Seeded(31).Floats(n, 8.0);
    // Coarse numbers: many ties.
    for (float& x : logits) x = std::round(x * 4) / 4;
    const auto largest = std::max_element(logits.begin(), logits.end());
    for (const Machine* machine : {&plain, &fast}) {
      EXPECT_EQ(ArgMax(machine->context, logits), largest - logits.begin());
    }
    for (size_t k : {size_t{1}, size_t{5}, size_t{40}, n}) {
      if (k > n || k > 2048) continue;
      std::vector<int32_t> order(n);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return logits[a] > logits[b];
      });
      order.resize(k);
      for (const Machine* machine : {&plain, &fast}) {
        std::vector<int32_t> ids(k, -1);
        ASSERT_TRUE(TopK(machine->context, logits, ids).ok());
        EXPECT_EQ(ids, order) << n << " " << k;
      }
    }
  }
}

TEST_P(SamplingTest, LogSumExpIsExact) {
  for (size_t n : {1u, 7u, 33u, 2048u, 100'003u}) {
    for (float offset : {0.0f, 500.0f, -500.0f}) {
      auto logits = Seeded(32).Floats(n, 10.0);
      for (float& x : logits) x += offset;
      double sum = 0;
      for (float x : logits) sum += std::exp(double{x} - offset);
      const double exact = offset + std::log(sum);
      for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
        Machine machine(backend);
        EXPECT_NEAR(LogSumExp(machine.context, logits),
                    exact,
                    2e-6 + 1.2e-7 * std::abs(exact));
      }
    }
  }
}

TEST_P(SamplingTest, MasksAndBrokenNumbers) {
  const float nan = std::nanf("");
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    Machine machine(backend);
    std::vector<float> masked(40, -kInfinity);
    EXPECT_EQ(ArgMax(machine.context, masked), 0);
    EXPECT_EQ(LogSumExp(machine.context, masked), -kInfinity);
    masked[33] = 1.5f;
    EXPECT_EQ(ArgMax(machine.context, masked), 33);
    EXPECT_FLOAT_EQ(LogSumExp(machine.context, masked), 1.5f);
    std::vector<int32_t> ids(3);
    ASSERT_TRUE(TopK(machine.context, masked, ids).ok());
    EXPECT_THAT(ids, ElementsAre(33, 0, 1));
    std::vector<float> broken(40, nan);
    EXPECT_EQ(ArgMax(machine.context, broken), 0);
    broken[20] = -3;
    EXPECT_EQ(ArgMax(machine.context, broken), 20);
  }
}

INSTANTIATE_TEST_SUITE_P(Simd,
                         SamplingTest,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

}  // namespace
}  // namespace conclave::kernels
