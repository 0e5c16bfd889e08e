// SPDX-License-Identifier: Apache-2.0
// Gated DeltaNet with recurrent states in bf16: beside the plain block, whose
// states are float32. What is rounded is the state, where it is written.
#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device_gdn.h"
#include "tests/gpu/gdn_world.h"
#include "tests/testing/bits.h"
#include "tests/testing/form.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

using testing::Bits;
using testing::RelativeError;
using Piece = GdnPiece;

// Of float32 against the plain block, as in gdn_test.cc.
constexpr double kTolerance = 1e-5;
// A number rounded to 8 bits of mantissa is off by at most this part of it.
constexpr double kRounding = 1.0 / 512;
// Against states that the test rounded: sums in another order take one number
// in some thousand to the other side of a tie. Cutting bits off in place of
// rounding would be off by more than kRounding.
constexpr double kTies = 5e-4;

class DeviceGdnState16 : public ::testing::TestWithParam<testing::Form> {
 protected:
  static GdnWorld World(int32_t slots,
                        int32_t key_heads = 2,
                        int32_t value_heads = 4) {
    return GdnWorld(
        key_heads, value_heads, slots, GetParam().gpu, GdnDType::kBF16);
  }
};

INSTANTIATE_TEST_SUITE_P(Forms,
                         DeviceGdnState16,
                         ::testing::Values(testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

std::vector<float> Slot(const std::vector<float>& all, int32_t slot, size_t n) {
  return {all.begin() + slot * n, all.begin() + (slot + 1) * n};
}

double Error(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  return RelativeError(got.data(), want.data(), want.size());
}

// One step: rows are as with float32, since rounding comes at its end; states
// are those of the plain block, rounded; other slots keep their bits.
void ExpectOneStep(GdnWorld& world, const std::vector<Piece>& pieces) {
  const auto before = world.recurrent;
  const auto got = world.Device(pieces);
  const auto want = world.Plain(pieces);
  const size_t values = world.Values();
  ASSERT_EQ(got.size(), want.size());
  for (size_t at = 0; at < got.size(); at += values) {
    ASSERT_LT(RelativeError(&got[at], &want[at], values), kTolerance)
        << "row " << at / values;
  }
  std::vector<bool> written(world.slots);
  for (const Piece& piece : pieces) {
    for (int32_t row = 0; row < piece.rows; ++row) {
      if (piece.SlotOf(row) >= 0) written[piece.SlotOf(row)] = true;
    }
  }
  const size_t cell = world.StateSize();
  for (int32_t slot = 0; slot < world.slots; ++slot) {
    SCOPED_TRACE(::testing::Message() << "slot " << slot);
    const auto state = Slot(world.recurrent, slot, cell);
    if (!written[slot]) {
      EXPECT_EQ(Bits(state), Bits(Slot(before, slot, cell)));
      continue;
    }
    const auto plain = Slot(world.plain_recurrent, slot, cell);
    EXPECT_LT(Error(state, plain), kRounding);
    EXPECT_LT(Error(state, world.Stored(plain)), kTies);
  }
}

TEST_P(DeviceGdnState16, DecodesBatches) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  for (const int32_t batch : {1, 5, 40}) {
    SCOPED_TRACE(::testing::Message() << batch << " sequences");
    GdnWorld world = World(2 * batch + 1);
    std::vector<Piece> pieces;
    for (int32_t i = 0; i < batch; ++i) {
      Piece piece{.position = 3 + i,
                  .slot_in = i,
                  .slots_out = {i % 3 == 2 ? batch + i : i},
                  .seed = static_cast<uint32_t>(10 + i)};
      if (i % 7 == 4) piece.slot_in = -1, piece.position = 0;
      if (i % 11 == 9) piece.slots_out = {};
      world.FillSlot(i, piece.position, 100 + i);
      pieces.push_back(piece);
    }
    ExpectOneStep(world, pieces);
  }
}

TEST_P(DeviceGdnState16, ManyHeads) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  for (const int32_t rows : {1, 5}) {
    GdnWorld world = World(2, 16, 64);
    world.FillSlot(0, 6, 8);
    ExpectOneStep(
        world, {{.rows = rows, .position = 6, .slot_in = 0, .slots_out = {1}}});
  }
}

// Prompts among single rows, and a slot for each row of one: the rows after go
// on from what is not rounded.
TEST_P(DeviceGdnState16, PrefillsAndMixesRows) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  GdnWorld world = World(10);
  const std::vector<Piece> pieces = MixedPieces();
  world.FillSlots(pieces);
  GdnWorld alone = World(10);
  alone.ring = world.ring;
  alone.recurrent = world.recurrent;
  ExpectOneStep(world, pieces);
  for (const Piece& piece : pieces) alone.Device({piece});
  EXPECT_EQ(Bits(alone.recurrent), Bits(world.recurrent));
  EXPECT_EQ(Bits(alone.ring), Bits(world.ring));
}

// A step multiplies what an earlier one rounded away by no more than 1 (by the
// decay, and by I - beta k k^T), so that the states of n steps differ from
// those of float32 by n roundings of the largest of them, and rows by as much;
// the norms of states and rows vary, for which there is a factor of 2.
TEST_P(DeviceGdnState16, DecodesAfterPrefill) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  constexpr int32_t kPrompt = 70, kSteps = 24;
  GdnWorld world = World(2);
  GdnWorld each =
      World(2);  // whose plain states are the device's, step by step
  for (int32_t step = 0; step <= kSteps; ++step) {
    SCOPED_TRACE(::testing::Message() << "step " << step);
    const bool first = step == 0;
    const int32_t to = step % 2;
    const std::vector<Piece> pieces = {
        {.rows = first ? kPrompt : 1,
         .position = first ? 0 : kPrompt + step - 1,
         .slot_in = first ? -1 : 1 - to,
         .slots_out = {to},
         .seed = 3}};
    each.plain_recurrent = each.recurrent;
    ExpectOneStep(each, pieces);
    const auto got = world.Device(pieces);
    const auto want = world.Plain(pieces);
    const size_t cell = world.StateSize();
    EXPECT_LT(Error(got, want), first ? kTolerance : 2 * kRounding * step);
    EXPECT_LT(Error(Slot(world.recurrent, to, cell),
                    Slot(world.plain_recurrent, to, cell)),
              2 * kRounding * (step + 1));
  }
}

// However many blocks share a head.
TEST_P(DeviceGdnState16, BatchesOfAllSizesAreTheSameBits) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  constexpr int32_t kSequences = 260;
  GdnWorld many = World(kSequences, 1, 2);
  std::vector<Piece> pieces;
  for (int32_t i = 0; i < kSequences; ++i) {
    many.FillSlot(i, i, 100 + i);
    pieces.push_back({.position = i,
                      .slot_in = i,
                      .slots_out = {i},
                      .seed = static_cast<uint32_t>(i)});
  }
  const auto ring = many.ring;
  const auto recurrent = many.recurrent;
  const auto all = many.Device(pieces);
  for (const int32_t count : {3, 64}) {
    GdnWorld few = World(kSequences, 1, 2);
    few.ring = ring;
    few.recurrent = recurrent;
    const auto some = few.Device({pieces.begin(), pieces.begin() + count});
    EXPECT_EQ(Bits(some), Bits(std::span(all).first(some.size())));
    for (int32_t slot = 0; slot < count; ++slot) {
      ASSERT_EQ(Bits(Slot(few.recurrent, slot, few.StateSize())),
                Bits(Slot(many.recurrent, slot, few.StateSize())));
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
