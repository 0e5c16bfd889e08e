// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/combine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "coordinator/experts/rows.h"
#include "tests/testing/seeded.h"

namespace conclave::experts {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kHidden = 2;

TEST(Combine, AddsInShardOrderWhateverTheOrderGiven) {
  // (1e8 + 1) - 1e8 is 0 in float32, (1e8 - 1e8) + 1 is 1.
  const std::vector<int32_t> tokens = {0};
  const std::vector<float> a = {1e8f, 1e8f}, b = {1, 1}, c = {-1e8f, -1e8f};
  const Partial first{ShardId{0}, tokens, a};
  const Partial second{ShardId{1}, tokens, b};
  const Partial third{ShardId{2}, tokens, c};
  std::vector<float> out(kHidden, 77);
  Combine({third, second, first}, kHidden, out);
  EXPECT_THAT(out, ElementsAre(0, 0));
  const Partial late{ShardId{3}, tokens, b};
  Combine({late, third, first}, kHidden, out);
  EXPECT_THAT(out, ElementsAre(1, 1));
}

TEST(Combine, RowsGoToTheirTokensAndOthersAreZero) {
  const std::vector<int32_t> first = {0, 3}, second = {3, 1};
  const std::vector<float> a = {1, 2, 3, 4}, b = {10, 20, 30, 40};
  std::vector<float> out(4 * kHidden, 77);
  Combine({{ShardId{5}, first, a}, {ShardId{9}, second, b}}, kHidden, out);
  EXPECT_THAT(out, ElementsAre(1, 2, 30, 40, 0, 0, 13, 24));
}

TEST(Combine, AMissingRowIsARowOfZeros) {
  const std::vector<int32_t> tokens = {0};
  const std::vector<float> minus = {-0.0f, -0.0f}, zero = {0, 0};
  std::vector<float> with(kHidden), without(kHidden);
  Combine(
      {{ShardId{0}, tokens, minus}, {ShardId{1}, tokens, zero}}, kHidden, with);
  Combine({{ShardId{0}, tokens, minus}}, kHidden, without);
  EXPECT_FALSE(std::signbit(with[0]));
  EXPECT_FALSE(std::signbit(without[0]));
}

TEST(Rows, Float32TravelsUnchanged) {
  testing::Seeded random(3);
  const std::vector<float> in = random.Floats(100, 1e6);
  std::vector<std::byte> wire(400);
  std::vector<float> out(100);
  EncodeRows(in, DType::kF32, wire);
  DecodeRows(wire, DType::kF32, out);
  EXPECT_EQ(in, out);
}

TEST(Rows, Bf16RoundsToNearestEven) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> in = {
      1.0f,
      std::bit_cast<float>(0x3f808000u),  // halfway, down to even
      std::bit_cast<float>(0x3f818000u),  // halfway, up to even
      std::bit_cast<float>(0x3f808001u),  // just above halfway
      -0.0f,
      infinity,
      std::numeric_limits<float>::max(),
      std::bit_cast<float>(0x7f800001u)};  // a NaN of low bits only
  std::vector<std::byte> wire(in.size() * 2);
  std::vector<float> out(in.size());
  EncodeRows(in, DType::kBF16, wire);
  DecodeRows(wire, DType::kBF16, out);
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[1]), 0x3f800000u);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[2]), 0x3f820000u);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[3]), 0x3f810000u);
  EXPECT_TRUE(std::signbit(out[4]));
  EXPECT_EQ(out[5], infinity);
  EXPECT_EQ(out[6], infinity);
  EXPECT_TRUE(std::isnan(out[7]));
}

TEST(Rows, GatherTakesRowsInTheOrderOfTheList) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::vector<int32_t> tokens = {2, 0};
  std::vector<float> out(4);
  GatherRows(x, tokens, kHidden, out);
  EXPECT_THAT(out, ElementsAre(5, 6, 1, 2));
}

}  // namespace
}  // namespace conclave::experts
