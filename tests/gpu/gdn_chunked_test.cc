// SPDX-License-Identifier: Apache-2.0
// The chunked form of Gated DeltaNet beside the plain twin on the CPU, which
// has rows one after the other. Where CUDA is not built the same tests run on
// the host's blocks, which have them so too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/device_gdn.h"
#include "tests/gpu/gdn_world.h"
#include "tests/testing/bits.h"
#include "tests/testing/form.h"

namespace conclave::kernels {
namespace {

using testing::Form;
using testing::RelativeError;

using Piece = GdnPiece;

// Operands are rounded to 11 bits, a relative error of 2^-12 to 2^-11 each and
// 3e-4 in the mean square of a few products one after the other: what a
// lane-by-lane emulation of the kernels has is 3e-4 to 6e-4 of a state's norm.
constexpr double kStateTolerance = 1.5e-3;
// Of a row's y over all heads. That y is rounded to 8 bits is 1.7e-3 in the
// mean square, the products are 5e-4 beside it. A head whose sums nearly
// cancel is divided by its small norm, so single rows have more (2.5e-3 in the
// emulation of these tests).
constexpr double kMeanTolerance = 2.5e-3;
constexpr double kRowTolerance = 1e-2;

struct Case {
  Form form;
  int32_t key = 0, value = 0;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.form.Name() << ", " << c.key << " of " << c.value;
}

class GdnChunked : public ::testing::TestWithParam<Case> {
 protected:
  static GdnWorld World(int32_t slots) {
    return GdnWorld(
        GetParam().key, GetParam().value, slots, GetParam().form.gpu);
  }
};

// Against the plain twin: rows, and the states of all slots that are written;
// the others keep their bits. Both worlds go on with their own states.
void ExpectClose(GdnWorld& world, const std::vector<Piece>& pieces) {
  const auto before = world.recurrent;
  const auto got = world.Device(pieces, true, GdnForm::kChunked);
  const auto want = world.Plain(pieces);
  const size_t values = world.Values();
  ASSERT_EQ(got.size(), want.size());
  double sum = 0;
  for (size_t at = 0; at < got.size(); at += values) {
    const double error = RelativeError(&got[at], &want[at], values);
    ASSERT_LT(error, kRowTolerance) << "row " << at / values;
    sum += error;
  }
  EXPECT_LT(sum * values / got.size(), kMeanTolerance);
  std::vector<bool> written(world.slots);
  for (const Piece& piece : pieces) {
    for (int32_t row = 0; row < piece.rows; ++row) {
      if (piece.SlotOf(row) >= 0) written[piece.SlotOf(row)] = true;
    }
  }
  const size_t cell = world.StateSize();
  for (int32_t slot = 0; slot < world.slots; ++slot) {
    const float* state = &world.recurrent[slot * cell];
    if (written[slot]) {
      EXPECT_LT(RelativeError(state, &world.plain_recurrent[slot * cell], cell),
                kStateTolerance)
          << "state of slot " << slot;
    } else {
      EXPECT_EQ(std::memcmp(state, &before[slot * cell], cell * sizeof(float)),
                0)
          << "slot " << slot << " was not to be written";
    }
  }
}

// `rows` rows with slots only where `slots` says {row, slot}.
Piece Sparse(int32_t rows,
             int32_t slot_in,
             const std::vector<std::pair<int32_t, int32_t>>& slots,
             uint32_t seed) {
  Piece piece{.rows = rows,
              .position = slot_in < 0 ? 0 : 6,
              .slot_in = slot_in,
              .slots_out = std::vector<int32_t>(rows, -1),
              .seed = seed};
  for (const auto& [row, slot] : slots) piece.slots_out[row] = slot;
  return piece;
}

// The longest makes the step a chunked one; begun and continued sequences.
TEST_P(GdnChunked, AgreesOverLengths) {
  CONCLAVE_REQUIRE_FORM(GetParam().form);
  const bool wide = GetParam().value > 4;
  for (const int32_t rows : {1, 2, 3, 8, 9, 63, 64, 65, 127, 130, 200, 513}) {
    if (wide && (rows == 127 || rows == 200 || rows == 513)) continue;
    SCOPED_TRACE(rows);
    GdnWorld world = World(4);
    for (const int32_t slot : {0, 1}) world.FillSlot(slot, 6, 8 + slot);
    ExpectClose(world,
                {Sparse(rows, -1, {{rows - 1, 2}}, 1),
                 Sparse(64, 0, {{63, 0}}, 2),
                 Sparse(rows, 1, {{rows - 1, 3}}, 3)});
  }
}

// Decoding rows beside prompts whose rows in the middle have slots.
TEST_P(GdnChunked, MixesSequencesAndCutsAtSlots) {
  CONCLAVE_REQUIRE_FORM(GetParam().form);
  GdnWorld world = World(12);
  for (const int32_t slot : {0, 1, 2}) world.FillSlot(slot, 6, 20 + slot);
  ExpectClose(
      world,
      {Sparse(1, 0, {{0, 0}}, 1),
       Sparse(130, -1, {{4, 3}, {62, 4}, {63, 5}, {64, 6}, {129, 7}}, 2),
       Sparse(1, 1, {{0, 8}}, 3),
       Sparse(5, 2, {{0, 9}, {1, 2}, {4, 10}}, 4),
       Sparse(1, -1, {}, 5),
       Sparse(66, -1, {{65, 11}}, 6)});
}

// Long memories and none, betas near 0 and 1.
TEST_P(GdnChunked, AgreesAtExtremeGates) {
  CONCLAVE_REQUIRE_FORM(GetParam().form);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const auto heads = static_cast<size_t>(GetParam().value);
  for (const float b_shift : {-12.0f, 0.0f, 12.0f}) {
    for (const float a_log : {kNever, -3.0f, 1.0f, 4.0f}) {
      SCOPED_TRACE(::testing::Message() << b_shift << " and " << a_log);
      GdnWorld world = World(2);
      std::vector<float> a_logs(heads, a_log);
      // Side by side with heads that remember.
      for (size_t i = 0; i < heads; i += 2) a_logs[i] = -6.0f;
      world.SetGates(a_logs, std::vector<float>(heads, 1.0f), b_shift);
      world.FillSlot(0, 6, 9);
      ExpectClose(world, {Sparse(100, 0, {{40, 1}, {99, 0}}, 1)});
      if (GetParam().value > 4) break;
    }
  }
}

// In steps of any length and at once, then decoding from both states: within
// twice the tolerance of each.
TEST_P(GdnChunked, StepsAgreeWithTheWholeAndDecodingFollows) {
  CONCLAVE_REQUIRE_FORM(GetParam().form);
  constexpr int32_t kRows = 150;
  GdnWorld world = World(2);
  const auto run = [&](int32_t begin, int32_t end, int32_t slot) {
    return world.Device({{.rows = end - begin,
                          .position = begin,
                          .slot_in = begin == 0 ? -1 : slot,
                          .slots_out = {slot}}},
                        true,
                        GdnForm::kChunked);
  };
  const auto whole = run(0, kRows, 0);
  std::vector<float> parts;
  int32_t begin = 0;
  for (const int32_t end : {70, 71, 80, kRows}) {
    const auto part = run(begin, end, 1);
    parts.insert(parts.end(), part.begin(), part.end());
    begin = end;
  }
  ASSERT_EQ(parts.size(), whole.size());
  EXPECT_LT(RelativeError(parts.data(), whole.data(), whole.size()),
            2 * kMeanTolerance);
  const size_t cell = world.StateSize();
  EXPECT_LT(RelativeError(&world.recurrent[cell], &world.recurrent[0], cell),
            2 * kStateTolerance);
  for (int32_t row = kRows; row < kRows + 3; ++row) {
    const auto one = run(row, row + 1, 0);
    const auto other = run(row, row + 1, 1);
    EXPECT_LT(RelativeError(other.data(), one.data(), one.size()),
              kRowTolerance);
  }
}

// The same step gives the same bits; short steps those of the recurrent form.
TEST_P(GdnChunked, BitsAreTheSameAgain) {
  CONCLAVE_REQUIRE_FORM(GetParam().form);
  const auto run = [](int32_t rows, GdnForm form) {
    GdnWorld world = World(2);
    world.FillSlot(0, 6, 3);
    const auto y =
        world.Device({Sparse(rows, 0, {{rows - 1, 1}}, 4)}, true, form);
    return std::pair(testing::Bits(y), testing::Bits(world.recurrent));
  };
  EXPECT_EQ(run(100, GdnForm::kChunked), run(100, GdnForm::kChunked));
  EXPECT_EQ(run(kGdnChunkedRows - 1, GdnForm::kChunked),
            run(kGdnChunkedRows - 1, GdnForm::kRecurrent));
}

std::vector<Case> Cases() {
  std::vector<Case> out = {{testing::kTwinForm, 2, 4}};
  for (const auto& [key, value] :
       {std::pair(2, 4), {1, 6}, {16, 32}, {16, 64}}) {
    out.push_back({testing::kGpuForm, key, value});
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(
    Forms, GdnChunked, ::testing::ValuesIn(Cases()), [](const auto& info) {
      return info.param.form.Name() + std::to_string(info.param.key) + "Of" +
             std::to_string(info.param.value);
    });

}  // namespace
}  // namespace conclave::kernels
