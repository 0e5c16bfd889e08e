// SPDX-License-Identifier: Apache-2.0
#include "coordinator/sample/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <vector>

#include "tests/testing/seeded.h"

namespace conclave::sample {
namespace {

using Logits = std::vector<float>;

// log of 0.4, 0.3, 0.2, 0.1, shifted; ids in no order.
const Logits kFour = {std::log(0.2f) + 3,
                      std::log(0.4f) + 3,
                      std::log(0.1f) + 3,
                      std::log(0.3f) + 3};

// How often each id came in `draws` draws.
std::vector<double> Frequencies(const SamplingParams& params,
                                const Logits& logits,
                                int32_t draws = 20000) {
  Sampler sampler(params, 42, static_cast<int32_t>(logits.size()), {});
  std::vector<double> out(logits.size());
  for (int32_t i = 0; i < draws; ++i) out[sampler.Sample(logits, i)] += 1;
  for (double& x : out) x /= draws;
  return out;
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& p) {
  ASSERT_EQ(got.size(), p.size());
  for (size_t i = 0; i < p.size(); ++i) {
    // Five standard deviations of 20000 draws; what is cut never comes.
    const double bound = 5 * std::sqrt(p[i] * (1 - p[i]) / 20000);
    EXPECT_LE(std::abs(got[i] - p[i]), bound) << "id " << i;
  }
}

SamplingParams With(const std::function<void(SamplingParams&)>& change) {
  SamplingParams out;
  change(out);
  return out;
}

SamplingParams AtZero(SamplingParams params) {
  params.temperature = 0;
  return params;
}

TEST(Sampler, DrawsTheModelsDistribution) {
  ExpectNear(Frequencies({}, kFour), {0.2, 0.4, 0.1, 0.3});
}

TEST(Sampler, TemperatureSharpens) {
  const auto params = With([](auto& p) { p.temperature = 0.5; });
  ExpectNear(Frequencies(params, kFour),
             {0.04 / 0.3, 0.16 / 0.3, 0.01 / 0.3, 0.09 / 0.3});
}

TEST(Sampler, TopKTopPAndMinPCut) {
  ExpectNear(Frequencies(With([](auto& p) { p.top_k = 2; }), kFour),
             {0, 4. / 7, 0, 3. / 7});
  ExpectNear(Frequencies(With([](auto& p) { p.top_p = 0.65; }), kFour),
             {0, 4. / 7, 0, 3. / 7});
  ExpectNear(Frequencies(With([](auto& p) { p.top_p = 0.75; }), kFour),
             {2. / 9, 4. / 9, 0, 3. / 9});
  ExpectNear(Frequencies(With([](auto& p) { p.top_p = 1e-9; }), kFour),
             {0, 1, 0, 0});
  ExpectNear(Frequencies(With([](auto& p) { p.min_p = 0.45; }), kFour),
             {2. / 9, 4. / 9, 0, 3. / 9});
}

// top-p counts what top-k left: 0.4 / 0.7 alone is above 0.5.
TEST(Sampler, TopPComesBehindTopK) {
  const auto params = With([](auto& p) {
    p.top_k = 2;
    p.top_p = 0.55;
  });
  ExpectNear(Frequencies(params, kFour), {0, 1, 0, 0});
}

TEST(Sampler, BiasComesBeforeAllElse) {
  const auto ban = With([](auto& p) { p.logit_bias = {{1, -100.f}}; });
  ExpectNear(Frequencies(ban, kFour), {2. / 6, 0, 1. / 6, 3. / 6});
  const auto force = With([](auto& p) { p.logit_bias = {{2, 100.f}}; });
  Sampler greedy(AtZero(force), 1, 4, {});
  EXPECT_EQ(greedy.Sample(kFour, 0), 2);
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  Sampler sampler(With([](auto& p) { p.temperature = 0; }), 1, 5, {});
  EXPECT_EQ(sampler.Sample(Logits{1, 7, 3, 7, 7}, 0), 1);
}

TEST(Sampler, UnusedIdsAreNeverChosen) {
  const Logits logits = {1, 2, 90, 95};
  Sampler greedy(With([](auto& p) { p.temperature = 0; }), 1, 2, {});
  EXPECT_EQ(greedy.Sample(logits, 0), 1);
  Sampler drawn({}, 1, 2, {});
  for (int32_t i = 0; i < 200; ++i) EXPECT_LT(drawn.Sample(logits, i), 2);
}

TEST(Sampler, RepetitionCountsPromptAndReply) {
  const std::vector<int32_t> prompt = {0};
  Sampler sampler(
      AtZero(With([](auto& p) { p.repetition_penalty = 2; })), 1, 4, prompt);
  const Logits logits = {10, 9, 8, -1};
  EXPECT_EQ(sampler.Sample(logits, 0), 1);  // 5, 9, 8
  sampler.Accept(1);
  EXPECT_EQ(sampler.Sample(logits, 1), 2);  // 5, 4.5, 8
  sampler.Accept(2);
  EXPECT_EQ(sampler.Sample(logits, 2), 0);                        // 5, 4.5, 4
  EXPECT_EQ(sampler.Sample(Logits{-3, -1, -2.5f, -2.2f}, 3), 1);  // -6 -2 -5
}

TEST(Sampler, RepetitionCountsOnceWhatStandsInBoth) {
  const std::vector<int32_t> prompt = {0};
  Sampler sampler(
      AtZero(With([](auto& p) { p.repetition_penalty = 2; })), 1, 2, prompt);
  sampler.Accept(0);
  EXPECT_EQ(sampler.Sample(Logits{10, 4}, 0), 0);  // 5, not 2.5
}

TEST(Sampler, PresenceAndFrequencyCountTheReplyOnly) {
  const std::vector<int32_t> prompt = {0};
  Sampler presence(
      AtZero(With([](auto& p) { p.presence_penalty = 1.5; })), 1, 2, prompt);
  const Logits logits = {10, 9};
  EXPECT_EQ(presence.Sample(logits, 0), 0);
  presence.Accept(0);
  EXPECT_EQ(presence.Sample(logits, 1), 1);  // 8.5, 9
  presence.Accept(0);
  EXPECT_EQ(presence.Sample(Logits{10.6f, 9}, 2), 0);  // once is enough
  Sampler frequency(
      AtZero(With([](auto& p) { p.frequency_penalty = 0.6; })), 1, 2, prompt);
  frequency.Accept(0);
  EXPECT_EQ(frequency.Sample(logits, 1), 0);  // 9.4, 9
  frequency.Accept(0);
  EXPECT_EQ(frequency.Sample(logits, 2), 1);  // 8.8, 9
}

TEST(Sampler, ADrawDependsOnSeedAndPositionOnly) {
  testing::Seeded random(3);
  const Logits logits = random.Floats(500);
  Sampler a({}, 5, 500, {}), b({}, 5, 500, {}), c({}, 6, 500, {});
  int32_t same = 0;
  for (int32_t i = 0; i < 100; ++i) b.Sample(logits, i + 1000);
  for (int32_t i = 0; i < 100; ++i) {
    const int32_t token = a.Sample(logits, i);
    EXPECT_EQ(b.Sample(logits, i), token);
    same += c.Sample(logits, i) == token;
  }
  EXPECT_LT(same, 10);
}

// The growing prefix of top-p against a full sort, at a real vocabulary.
TEST(Sampler, CutsALargeVocabularyAsAFullSortDoes) {
  testing::Seeded random(11);
  const Logits logits = random.Floats(248320, 4.0);
  std::vector<float> sorted = logits;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double total = 0, sum = 0;
  for (const float x : sorted) total += std::exp(double{x});
  size_t kept = 0;
  while (sum < 0.3 * total) sum += std::exp(double{sorted[kept++]});
  Sampler sampler(With([](auto& p) { p.top_p = 0.3; }), 9, 248320, {});
  bool deep = false;
  for (int32_t i = 0; i < 20; ++i) {
    const float chosen = logits[sampler.Sample(logits, i)];
    EXPECT_GE(chosen, sorted[kept - 1]);
    deep |= chosen < sorted[100];
  }
  EXPECT_TRUE(deep);
}

// 66 of 100 equals: two more than the first prefix that is sorted.
TEST(Sampler, TopPGrowsItsPrefixExactlyAsFarAsNeeded) {
  Sampler sampler(With([](auto& p) { p.top_p = 0.655; }), 9, 100, {});
  std::set<int32_t> seen;
  for (int32_t i = 0; i < 4000; ++i) {
    seen.insert(sampler.Sample(Logits(100, 1.0f), i));
  }
  EXPECT_EQ(seen.size(), 66u);
  EXPECT_EQ(*seen.rbegin(), 65);
}

TEST(UniformAt, IsEvenOverPositionsAndSeeds) {
  std::vector<int32_t> by_position(10), by_seed(10);
  for (uint64_t i = 0; i < 20000; ++i) {
    ++by_position[static_cast<size_t>(UniformAt(1, i) * 10)];
    ++by_seed[static_cast<size_t>(UniformAt(i, 1) * 10)];
  }
  for (int i = 0; i < 10; ++i) {
    EXPECT_NEAR(by_position[i], 2000, 220);
    EXPECT_NEAR(by_seed[i], 2000, 220);
  }
}

TEST(Logprobs, AreALogSoftmaxOfTheModel) {
  const Logprobs got = LogprobsOf(kFour, 2, 3);
  EXPECT_NEAR(got.chosen, std::log(0.1), 1e-5);
  ASSERT_EQ(got.top.size(), 3u);
  EXPECT_EQ(got.top[0].id, 1);
  EXPECT_NEAR(got.top[0].value, std::log(0.4), 1e-5);
  EXPECT_EQ(got.top[1].id, 3);
  EXPECT_EQ(got.top[2].id, 0);
  double sum = 0;
  for (const Logprob& l : LogprobsOf(kFour, 0, 20).top)
    sum += std::exp(l.value);
  EXPECT_NEAR(sum, 1, 1e-6);
}

TEST(Logprobs, EqualsComeInTheOrderOfIds) {
  const Logprobs got = LogprobsOf(Logits{2, 5, 5, 2}, 0, 4);
  EXPECT_EQ(got.top[0].id, 1);
  EXPECT_EQ(got.top[1].id, 2);
  EXPECT_EQ(got.top[2].id, 0);
  EXPECT_EQ(got.top[3].id, 3);
}

}  // namespace
}  // namespace conclave::sample
