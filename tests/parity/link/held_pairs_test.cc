// SPDX-License-Identifier: Apache-2.0
// The pairs that a holder picks from a router's choices: every pair whose
// expert it has, once, with its row and weight, and no other.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "kernels/device_held_pairs.h"
#include "tests/gpu/device_values.h"
#include "tests/testing/form.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

constexpr int32_t kExperts = 200, kPerRow = 7;

class HeldPairsOf : public ::testing::TestWithParam<testing::Form> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         HeldPairsOf,
                         ::testing::Values(testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

struct Chosen {
  // Rows choose without regard to each other; the last choice of each is
  // `kExperts`, which is nobody's here, as the shared expert is.
  Chosen(uint32_t seed, int32_t rows) {
    testing::Seeded random(seed);
    for (int32_t r = 0; r < rows; ++r) {
      std::vector<int32_t> row;
      while (row.size() + 1 < kPerRow) {
        const int32_t e = random.Int(kExperts);
        if (std::count(row.begin(), row.end(), e) == 0) row.push_back(e);
      }
      row.push_back(kExperts);
      expert.insert(expert.end(), row.begin(), row.end());
      for (int32_t j = 0; j < kPerRow; ++j) {
        weight.push_back(static_cast<float>(random.Real()));
      }
    }
  }
  std::vector<int32_t> expert;
  std::vector<float> weight;
};

// Which experts are here, in an order of their own; `share` of 4 of them.
std::vector<int32_t> Held(int32_t share, int32_t* numbers) {
  std::vector<int32_t> out(kExperts, -1);
  *numbers = 0;
  for (int32_t e = kExperts - 1; e >= 0; --e) {
    if (e % 4 < share) out[static_cast<size_t>(e)] = (*numbers)++;
  }
  return out;
}

struct Sorted {
  std::vector<int32_t> row, place, groups, first, pair;
  std::vector<float> weight;
  int32_t count = 0;
};

Sorted Sort(DeviceQueue& queue,
            const Chosen& chosen,
            const std::vector<int32_t>& held,
            int32_t numbers,
            int32_t group_rows) {
  const auto rows = static_cast<int32_t>(chosen.expert.size()) / kPerRow;
  const DeviceBuffer expert = Up(queue, chosen.expert);
  const DeviceBuffer weight = Up(queue, chosen.weight);
  const DeviceBuffer number = Up(queue, held);
  const DeviceBuffer words = Room(queue, HeldPairsBytes(rows, kPerRow));
  const DeviceChoices choices{
      rows, kPerRow, expert.as<int32_t>(), weight.as<float>()};
  const DeviceHeld here{kExperts, numbers, number.as<int32_t>()};
  const HeldPairs pairs =
      HeldPairsAt(choices, here, group_rows, words.as<int32_t>());
  const absl::Status status = DeviceHeldPairs(&queue, choices, here, pairs);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(queue.Wait().ok());
  Sorted out;
  const size_t all = chosen.expert.size();
  out.row = Down(queue, pairs.entries.row, all);
  out.place = Down(queue, pairs.entries.place, all);
  out.count = Down(queue, pairs.entries.group_count, 1)[0];
  out.groups =
      Down(queue, pairs.entries.groups, 4 * static_cast<size_t>(out.count));
  out.first = Down(queue, pairs.first, static_cast<size_t>(rows) + 1);
  out.pair = Down(queue, pairs.pair, all);
  out.weight = Down(queue, pairs.weight, all);
  EXPECT_LE(out.count, pairs.entries.groups_max);
  return out;
}

// number of every pair, from the groups; each pair is in one.
std::map<int32_t, int32_t> NumbersOf(const Sorted& s, int32_t group_rows) {
  std::map<int32_t, int32_t> out;
  for (int32_t g = 0; g < s.count; ++g) {
    const int32_t* group = &s.groups[4 * static_cast<size_t>(g)];
    EXPECT_LE(group[2], group_rows);
    EXPECT_GT(group[2], 0);
    for (int32_t p = group[1]; p < group[1] + group[2]; ++p) {
      EXPECT_TRUE(out.emplace(p, group[0]).second) << "pair " << p << " twice";
    }
  }
  return out;
}

void Check(DeviceQueue& queue, int32_t rows, int32_t share, int32_t group) {
  SCOPED_TRACE(::testing::Message() << rows << " rows, share " << share);
  const Chosen chosen(static_cast<uint32_t>(rows + share), rows);
  int32_t numbers = 0;
  const std::vector<int32_t> held = Held(share, &numbers);
  const Sorted s = Sort(queue, chosen, held, numbers, group);
  const auto number_of = NumbersOf(s, group);
  int32_t place = 0;
  for (int32_t r = 0; r < rows; ++r) {
    std::map<int32_t, std::pair<int32_t, float>> want;  // by number
    for (int32_t j = 0; j < kPerRow; ++j) {
      const auto at = static_cast<size_t>(r * kPerRow + j);
      const int32_t e = chosen.expert[at];
      const int32_t number = e < kExperts ? held[static_cast<size_t>(e)] : -1;
      if (number < 0) {
        EXPECT_EQ(s.place[at], -1);
      } else {
        want[number] = {s.place[at], chosen.weight[at]};
      }
    }
    ASSERT_EQ(s.first[static_cast<size_t>(r)], place);
    for (const auto& [number, pair] : want) {
      const auto at = static_cast<size_t>(place++);
      EXPECT_EQ(s.pair[at], pair.first);
      EXPECT_EQ(s.weight[at], pair.second);
      EXPECT_EQ(number_of.at(pair.first), number);
      EXPECT_EQ(s.row[static_cast<size_t>(pair.first)], r);
    }
  }
  EXPECT_EQ(s.first.back(), place);
  EXPECT_EQ(number_of.size(), static_cast<size_t>(place));
}

TEST_P(HeldPairsOf, EveryPairThatIsHereOnceAndNoOther) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto queue = DeviceQueue::Create(GetParam().gpu);
  ASSERT_TRUE(queue.ok()) << queue.status();
  for (const int32_t rows : {1, 2, 9, 64, 333, 2100}) {
    for (const int32_t share : {0, 1, 3, 4}) {
      Check(**queue, rows, share, rows < 64 ? 8 : 32);
    }
  }
}

TEST_P(HeldPairsOf, ExpertsThatDoNotExistAreNotHere) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto queue = DeviceQueue::Create(GetParam().gpu);
  ASSERT_TRUE(queue.ok()) << queue.status();
  Chosen chosen(3, 4);
  chosen.expert[2] = -5;
  chosen.expert[9] = 1 << 30;
  int32_t numbers = 0;
  const std::vector<int32_t> held = Held(4, &numbers);
  const Sorted s = Sort(**queue, chosen, held, numbers, 8);
  EXPECT_EQ(s.place[2], -1);
  EXPECT_EQ(s.place[9], -1);
  EXPECT_EQ(s.first.back(), 4 * (kPerRow - 1) - 2);
}

TEST_P(HeldPairsOf, TooManyNumbersAreRefused) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto queue = DeviceQueue::Create(GetParam().gpu);
  ASSERT_TRUE(queue.ok()) << queue.status();
  EXPECT_EQ(DeviceHeldPairs(queue->get(),
                            {.rows = 1, .per_row = 1},
                            {.experts = 1, .numbers = kHeldNumbersMax + 1},
                            {})
                .code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace conclave::kernels
