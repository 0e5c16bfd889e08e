// SPDX-License-Identifier: Apache-2.0
// Gated DeltaNet on the GPU: beside the plain twin on the CPU, and against
// itself where steps are cut and mixed differently.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/device_gdn.h"
#include "tests/gpu/gdn_world.h"
#include "tests/gpu/require_gpu.h"
#include "tests/testing/bits.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

using testing::Bits;
using testing::RelativeError;

using Piece = GdnPiece;

constexpr double kTolerance = 1e-5;
constexpr double kBf16Tolerance = 4e-3;  // y rounded to 8 bits

// The rows of a slot's ring before `position`, oldest first.
std::vector<float> RingBefore(const GdnWorld& world,
                              int32_t slot,
                              int32_t position) {
  std::vector<float> out;
  const size_t channels = world.Channels();
  for (int32_t j = 1; j <= 3; ++j) {
    const float* row =
        &world.ring[(slot * 4 + ((position + j) & 3)) * channels];
    out.insert(out.end(), row, row + channels);
  }
  return out;
}

std::vector<float> StateOf(const GdnWorld& world, int32_t slot) {
  const float* state = &world.recurrent[slot * world.StateSize()];
  return {state, state + world.StateSize()};
}

// Rows, states and rings as the plain twin has them; slots that are not
// written keep their bits.
void ExpectParity(GdnWorld& world,
                  const std::vector<Piece>& pieces,
                  bool bf16 = false) {
  const auto ring = world.ring;
  const auto recurrent = world.recurrent;
  const auto got = world.Device(pieces, bf16);
  const auto want = world.Plain(pieces);
  const size_t values = world.Values();
  ASSERT_EQ(got.size(), want.size());
  for (size_t at = 0; at < got.size(); at += values) {
    ASSERT_LT(RelativeError(&got[at], &want[at], values),
              bf16 ? kBf16Tolerance : kTolerance)
        << "row " << at / values;
  }
  std::vector<int32_t> position_of(world.slots, -1);  // after what it has
  for (const Piece& piece : pieces) {
    for (int32_t row = 0; row < piece.rows; ++row) {
      const int32_t slot = piece.SlotOf(row);
      if (slot >= 0) position_of[slot] = piece.position + row + 1;
    }
  }
  const size_t cell = world.StateSize();
  const size_t rows = world.Channels() * 4;
  for (int32_t slot = 0; slot < world.slots; ++slot) {
    const auto bytes = [](size_t floats) { return floats * sizeof(float); };
    if (position_of[slot] < 0) {
      EXPECT_EQ(
          std::memcmp(&world.recurrent[slot * cell],
                      &recurrent[slot * cell],
                      bytes(cell)) |
              std::memcmp(
                  &world.ring[slot * rows], &ring[slot * rows], bytes(rows)),
          0)
          << "slot " << slot << " was not to be written";
      continue;
    }
    EXPECT_LT(RelativeError(&world.recurrent[slot * cell],
                            &world.plain_recurrent[slot * cell],
                            cell),
              kTolerance)
        << "state of slot " << slot;
    const auto before = RingBefore(world, slot, position_of[slot]);
    EXPECT_EQ(std::memcmp(before.data(),
                          &world.plain_conv[slot * before.size()],
                          bytes(before.size())),
              0)
        << "convolution rows of slot " << slot;
  }
}

std::vector<float> Slice(const std::vector<float>& all, size_t at, size_t n) {
  return {all.begin() + at, all.begin() + at + n};
}

struct Heads {
  int32_t key = 0, value = 0;
};

class GpuGdn : public ::testing::TestWithParam<Heads> {
 protected:
  static GdnWorld World(int32_t slots) {
    return GdnWorld(GetParam().key, GetParam().value, slots);
  }
};

// Sequences at all phases of the ring; every third goes to another slot, every
// seventh begins, every eleventh leaves no state.
std::vector<Piece> DecodeBatch(GdnWorld& world, int32_t batch) {
  std::vector<Piece> pieces;
  for (int32_t i = 0; i < batch; ++i) {
    Piece piece{.position = 3 + i,
                .slot_in = i,
                .slots_out = {i},
                .seed = static_cast<uint32_t>(10 + i)};
    if (i % 3 == 2) piece.slots_out = {batch + i / 3};
    if (i % 7 == 5) piece.slot_in = -1, piece.position = 0;
    if (i % 11 == 9) piece.slots_out = {};
    world.FillSlot(i, piece.position, 100 + i);
    pieces.push_back(piece);
  }
  return pieces;
}

TEST_P(GpuGdn, DecodesBatches) {
  CONCLAVE_REQUIRE_GPU();
  for (const int32_t batch : {1, 3, 8, 33, 256}) {
    for (const bool bf16 : {false, true}) {
      if (batch == 256 && bf16) continue;  // the CPU's twin takes its time
      SCOPED_TRACE(::testing::Message() << batch << " sequences, " << bf16);
      GdnWorld world = World(batch + batch / 3 + 2);
      ExpectParity(world, DecodeBatch(world, batch), bf16);
    }
  }
}

TEST_P(GpuGdn, DecodesStepAfterStep) {
  CONCLAVE_REQUIRE_GPU();
  GdnWorld world = World(2);
  for (int32_t position = 0; position < 9; ++position) {
    SCOPED_TRACE(position);
    ExpectParity(world,
                 {{.position = position,
                   .slot_in = position == 0 ? -1 : 1,
                   .slots_out = {1},
                   .seed = 3}});
  }
}

TEST_P(GpuGdn, PrefillsRows) {
  CONCLAVE_REQUIRE_GPU();
  for (const int32_t rows : {1, 2, 3, 63, 64, 65, 130, 300}) {
    for (const int32_t slot_in : {-1, 0, 1}) {
      if (rows > 65 && slot_in == 0 && GetParam().value > 4) continue;
      SCOPED_TRACE(::testing::Message() << rows << " rows from " << slot_in);
      GdnWorld world = World(3);
      const int32_t position = slot_in < 0 ? 0 : 6;
      world.FillSlot(0, position, 8);
      world.FillSlot(1, position, 9);
      ExpectParity(world,
                   {{.rows = rows,
                     .position = position,
                     .slot_in = slot_in,
                     .slots_out = {1},
                     .seed = 5}},
                   rows % 2 == 0);
    }
  }
}

// Several sequences, with one-row ones, at once; each also alone, bit for bit.
TEST_P(GpuGdn, MixesSequencesAndKeepsThemApart) {
  CONCLAVE_REQUIRE_GPU();
  const std::vector<Piece> pieces = MixedPieces();
  GdnWorld world = World(10);
  world.FillSlots(pieces);
  GdnWorld together = World(10);
  GdnWorld alone = World(10);
  for (GdnWorld* other : {&together, &alone}) {
    other->ring = world.ring;
    other->recurrent = world.recurrent;
  }
  ExpectParity(world, pieces);
  const auto all = together.Device(pieces);
  std::vector<float> one_by_one;
  for (const Piece& piece : pieces) {
    const auto rows = alone.Device({piece});
    one_by_one.insert(one_by_one.end(), rows.begin(), rows.end());
  }
  EXPECT_EQ(Bits(one_by_one), Bits(all));
  EXPECT_EQ(Bits(alone.recurrent), Bits(together.recurrent));
  EXPECT_EQ(Bits(alone.ring), Bits(together.ring));
}

// In any steps, also of single rows: rows, state and ring bit for bit.
TEST_P(GpuGdn, CutsAreTheSameBits) {
  CONCLAVE_REQUIRE_GPU();
  constexpr int32_t kRows = 75;
  const std::vector<std::vector<int32_t>> cuts = {
      {64, 75}, {1, 2, 3, 4, 5, 75}, {2, 5, 9, 40, 72, 73, 74, 75}};
  GdnWorld world = World(3);
  const auto whole = world.Device({{.rows = kRows, .slots_out = {0}}});
  for (const auto& ends : cuts) {
    std::vector<float> rows;
    int32_t begin = 0;
    for (const int32_t end : ends) {
      // Back and forth between two slots.
      const int32_t from = 1 + begin % 2;
      const auto part = world.Device({{.rows = end - begin,
                                       .position = begin,
                                       .slot_in = begin == 0 ? -1 : from,
                                       .slots_out = {1 + end % 2}}});
      rows.insert(rows.end(), part.begin(), part.end());
      begin = end;
    }
    const int32_t last = 1 + kRows % 2;
    EXPECT_EQ(Bits(rows), Bits(whole));
    EXPECT_EQ(Bits(StateOf(world, last)), Bits(StateOf(world, 0)));
    EXPECT_EQ(Bits(RingBefore(world, last, kRows)),
              Bits(RingBefore(world, 0, kRows)));
  }
}

// Each row's state in a slot; the one that is read is among them, and its ring
// is needed after it was overwritten.
TEST_P(GpuGdn, SlotPerRowHoldsTheStateAfterIt) {
  CONCLAVE_REQUIRE_GPU();
  for (const std::vector<int32_t>& slots :
       {std::vector<int32_t>{3, 0, 2}, {0, 3, 2}, {0, 2, 3, 4, 5, 1}}) {
    for (int32_t position = 4; position < 8; ++position) {
      SCOPED_TRACE(position);
      GdnWorld world = World(7);
      world.FillSlot(3, position, 8);
      ExpectParity(world,
                   {{.rows = static_cast<int32_t>(slots.size()),
                     .position = position,
                     .slot_in = 3,
                     .slots_out = slots,
                     .seed = 4}});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes,
                         GpuGdn,
                         ::testing::Values(Heads{2, 4},
                                           Heads{16, 32},
                                           Heads{16, 64}),
                         [](const auto& info) {
                           return std::to_string(info.param.key) + "Of" +
                                  std::to_string(info.param.value);
                         });

// So many that heads are not split over blocks: the same bits as when they are.
TEST(GpuGdnBlocks, WholeHeadsAreTheSameBits) {
  CONCLAVE_REQUIRE_GPU();
  constexpr int32_t kSequences = 260;
  GdnWorld world(2, 4, kSequences);
  std::vector<Piece> pieces;
  for (int32_t i = 0; i < kSequences; ++i) {
    world.FillSlot(i, i, 100 + i);
    pieces.push_back({.position = i,
                      .slot_in = i,
                      .slots_out = {i},
                      .seed = static_cast<uint32_t>(i)});
  }
  GdnWorld few(2, 4, kSequences);
  few.ring = world.ring;
  few.recurrent = world.recurrent;
  const auto all = world.Device(pieces);
  const auto some = few.Device({pieces.begin(), pieces.begin() + 5});
  EXPECT_EQ(Bits(some), Bits(Slice(all, 0, some.size())));
  for (int32_t slot = 0; slot < 5; ++slot) {
    EXPECT_EQ(Bits(StateOf(few, slot)), Bits(StateOf(world, slot)));
  }
}

TEST(GpuGdnShapes, OthersAreRefused) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = DeviceQueue::Create(0);
  ASSERT_TRUE(queue.ok()) << queue.status();
  const auto run = [&](int32_t keys, int32_t values, int32_t dim, int32_t k) {
    const GdnShape shape{.key_heads = keys,
                         .value_heads = values,
                         .key_dim = dim,
                         .value_dim = 128,
                         .conv_kernel = k};
    const DeviceStep step{.rows = 1, .sequences = 1};
    return DeviceGdn(queue->get(),
                     shape,
                     {},
                     {},
                     step,
                     GdnForm::kRecurrent,
                     nullptr,
                     nullptr,
                     {})
        .code();
  };
  EXPECT_EQ(run(2, 4, 64, 4), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run(2, 4, 128, 3), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run(3, 4, 128, 4), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run(1, 3, 128, 4), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace conclave::kernels
