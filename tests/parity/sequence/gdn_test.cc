// SPDX-License-Identifier: Apache-2.0
// Gated DeltaNet against itself: forms, cuts, batches, slots, threads.
#include "tests/parity/sequence/gdn_fixture.h"

namespace conclave::kernels {
namespace {

using ::testing::Each;

constexpr double kTolerance = 1e-5;

class GdnForms : public ::testing::TestWithParam<Backend> {};

TEST_P(GdnForms, ChunkedEqualsRecurrent) {
  Machine machine(GetParam());
  for (const GdnShape& shape : {OddShape(), TinyShape()}) {
    for (int32_t rows : {1, 2, 3, 63, 64, 65, 130}) {
      for (int32_t slot_in : {-1, 0}) {
        SCOPED_TRACE(::testing::Message() << rows << " rows, slot " << slot_in);
        GdnLayer layer(shape);
        layer.FillSlot(0, 5);
        const auto u = layer.Input(rows, rows);
        const auto chunked = layer.Run(machine,
                                       {{.u = u,
                                         .cells = CellsOf(0, rows),
                                         .slot_in = slot_in,
                                         .slots_out = {1}}});
        const auto recurrent = layer.Run(
            machine, {{.u = u, .slot_in = slot_in, .slots_out = {2}}});
        EXPECT_LT(Error(chunked, recurrent), kTolerance);
        EXPECT_LT(Error(layer.StateSlot(1), layer.StateSlot(2)), kTolerance);
        EXPECT_EQ(Bits(layer.ConvSlot(1)), Bits(layer.ConvSlot(2)));
      }
    }
  }
}

TEST_P(GdnForms, PrefillInPiecesEqualsAtOnceBitForBit) {
  Machine machine(GetParam());
  constexpr int32_t kRows = 200;
  GdnLayer layer(OddShape());
  const size_t hidden = layer.shape.hidden;
  const auto u = layer.Input(3, kRows);
  const auto whole = layer.Run(machine, {{.u = u, .cells = CellsOf(0, kRows)}});
  const std::vector<std::vector<int32_t>> cuts = {
      {64, 200}, {128, 200}, {64, 128, 192, 200}};
  for (const auto& ends : cuts) {
    std::vector<float> pieces;
    int32_t begin = 0;
    for (int32_t end : ends) {
      const auto part =
          layer.Run(machine,
                    {{.u = Slice(u, begin * hidden, (end - begin) * hidden),
                      .position = begin,
                      .cells = CellsOf(begin, end - begin),
                      .slot_in = begin == 0 ? -1 : 1,
                      .slots_out = {1}}});
      pieces.insert(pieces.end(), part.begin(), part.end());
      begin = end;
    }
    EXPECT_EQ(Bits(pieces), Bits(whole));
    EXPECT_EQ(Bits(layer.StateSlot(1)), Bits(layer.StateSlot(0)));
    EXPECT_EQ(Bits(layer.ConvSlot(1)), Bits(layer.ConvSlot(0)));
  }
}

// Shorter pieces than the convolution is long must shift its state.
TEST_P(GdnForms, OneRowAtATimeEqualsAtOnceBitForBit) {
  Machine machine(GetParam());
  for (int32_t rows : {1, 2, 3, 4, 7}) {
    GdnLayer layer(OddShape());
    const size_t hidden = layer.shape.hidden;
    const auto u = layer.Input(rows, rows);
    const auto whole = layer.Run(machine, {{.u = u}});
    std::vector<float> pieces;
    for (int32_t t = 0; t < rows; ++t) {
      const auto part = layer.Run(machine,
                                  {{.u = Slice(u, t * hidden, hidden),
                                    .position = t,
                                    .slot_in = t == 0 ? -1 : 1,
                                    .slots_out = {1}}});
      pieces.insert(pieces.end(), part.begin(), part.end());
    }
    EXPECT_EQ(Bits(pieces), Bits(whole));
    EXPECT_EQ(Bits(layer.StateSlot(1)), Bits(layer.StateSlot(0)));
    EXPECT_EQ(Bits(layer.ConvSlot(1)), Bits(layer.ConvSlot(0)));
  }
}

TEST_P(GdnForms, ConvolutionStateIsTheLastRowsAndZerosBeforeTheFirst) {
  Machine machine(GetParam());
  GdnLayer layer(OddShape());
  const size_t channels = layer.shape.channels();
  layer.Run(machine, {{.u = layer.Input(1, 2), .cells = {2}}});
  const auto conv = layer.ConvSlot(0);
  EXPECT_THAT(Slice(conv, 0, channels), Each(0.0f));
  for (size_t row : {1, 2}) {
    const auto u = layer.Input(1, 2);
    for (size_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int32_t i = 0; i < layer.shape.hidden; ++i) {
        sum += static_cast<double>(layer.qkv.data[c * layer.shape.hidden + i]) *
               u[(row - 1) * layer.shape.hidden + i];
      }
      EXPECT_NEAR(conv[row * channels + c], sum, 1e-5);
    }
  }
}

std::vector<Piece> MixedBatch(GdnLayer& layer) {
  for (int32_t slot : {0, 1, 2}) layer.FillSlot(slot, 20 + slot);
  return {
      {.u = layer.Input(1, 3), .slot_in = 0, .slots_out = {3}},
      {.u = layer.Input(2, 70), .cells = {64, 70}, .slots_out = {4}},
      {.u = layer.Input(3, 1), .slot_in = 1, .slots_out = {1}},
      {.u = layer.Input(4, 5), .cells = {2, 5}, .slot_in = 2, .slots_out = {5}},
      {.u = layer.Input(5, 2), .slot_in = 0, .slots_out = {6, 7}}};
}

TEST_P(GdnForms, BatchEqualsEachAloneBitForBit) {
  Machine machine(GetParam(), 2);
  for (const GdnShape& shape : GdnShapes()) {
    GdnLayer together(shape, 8);
    const auto pieces = MixedBatch(together);
    const auto out = together.Run(machine, pieces);
    GdnLayer alone(shape, 8);
    MixedBatch(alone);
    std::vector<float> outs;
    for (const Piece& piece : pieces) {
      const auto part = alone.Run(machine, {piece});
      outs.insert(outs.end(), part.begin(), part.end());
    }
    EXPECT_EQ(Bits(out), Bits(outs));
    EXPECT_EQ(Bits(together.recurrent), Bits(alone.recurrent));
    EXPECT_EQ(Bits(together.conv_state), Bits(alone.conv_state));
  }
}

TEST_P(GdnForms, ReadSlotAndOtherSlotsStayAsTheyWere) {
  Machine machine(GetParam());
  for (const std::vector<int32_t>& cells :
       {std::vector<int32_t>{}, std::vector<int32_t>{5}}) {
    GdnLayer layer(OddShape());
    layer.FillSlot(1, 9);
    const GdnLayer before = layer;
    layer.Run(machine,
              {{.u = layer.Input(1, 5),
                .cells = cells,
                .slot_in = 1,
                .slots_out = {2}}});
    for (int32_t slot : {0, 1, 3}) {
      EXPECT_EQ(Bits(layer.StateSlot(slot)), Bits(before.StateSlot(slot)));
      EXPECT_EQ(Bits(layer.ConvSlot(slot)), Bits(before.ConvSlot(slot)));
    }
    const auto apart = layer;
    layer.Run(machine,
              {{.u = layer.Input(1, 5),
                .cells = cells,
                .slot_in = 1,
                .slots_out = {1}}});
    EXPECT_EQ(Bits(layer.StateSlot(1)), Bits(apart.StateSlot(2)));
    EXPECT_EQ(Bits(layer.ConvSlot(1)), Bits(apart.ConvSlot(2)));
  }
}

TEST_P(GdnForms, SlotPerTokenHoldsTheStateAfterIt) {
  Machine machine(GetParam());
  constexpr int32_t kRows = 6;
  // The read slot is among the written ones: 3 comes after the fourth row.
  const std::vector<int32_t> slots = {5, 0, 2, 3, 6, 1};
  GdnLayer layer(OddShape(), 8);
  layer.FillSlot(3, 8);
  GdnLayer reference = layer;
  const auto u = layer.Input(4, kRows);
  const auto out =
      layer.Run(machine, {{.u = u, .slot_in = 3, .slots_out = slots}});
  for (int32_t rows = 1; rows <= kRows; ++rows) {
    const size_t size = size_t{1} * rows * layer.shape.hidden;
    const auto part = reference.Run(
        machine, {{.u = Slice(u, 0, size), .slot_in = 3, .slots_out = {7}}});
    EXPECT_EQ(Bits(part), Bits(Slice(out, 0, size)));
    const int32_t slot = slots[rows - 1];
    EXPECT_EQ(Bits(layer.StateSlot(slot)), Bits(reference.StateSlot(7)));
    EXPECT_EQ(Bits(layer.ConvSlot(slot)), Bits(reference.ConvSlot(7)));
  }
}

TEST_P(GdnForms, StrongDecayDoesNotOverflow) {
  Machine machine(GetParam());
  GdnLayer layer(OddShape());
  for (float& x : layer.a_log) x = 5.0f;  // exp(G) underflows in a cell
  for (float& x : layer.dt_bias) x = 3.0f;
  layer.FillSlot(0, 1);
  const auto u = layer.Input(2, 64);
  const auto chunked = layer.Run(
      machine, {{.u = u, .cells = {64}, .slot_in = 0, .slots_out = {1}}});
  const auto recurrent =
      layer.Run(machine, {{.u = u, .slot_in = 0, .slots_out = {2}}});
  EXPECT_LT(Error(chunked, recurrent), kTolerance);
  EXPECT_LT(Error(layer.StateSlot(1), layer.StateSlot(2)), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Twins,
                         GdnForms,
                         ::testing::Values(Backend::kCpuPlain, Backend::kCpu),
                         [](const auto& info) {
                           return info.param == Backend::kCpu ? "Fast"
                                                              : "Plain";
                         });

class GdnFast : public EveryTarget {};

TEST_P(GdnFast, EqualsPlain) {
  Machine plain(Backend::kCpuPlain);
  Machine fast(Backend::kCpu, 2);
  for (const GdnShape& shape : GdnShapes()) {
    for (int32_t rows : {1, 3, 31, 65}) {
      for (bool cells : {false, true}) {
        SCOPED_TRACE(::testing::Message() << shape.value_dim << " values, "
                                          << rows << " rows, " << cells);
        GdnLayer a(shape), b(shape);
        a.FillSlot(0, rows);
        b.FillSlot(0, rows);
        const Piece piece{
            .u = a.Input(rows + 1, rows),
            .cells = cells ? CellsOf(0, rows) : std::vector<int32_t>{},
            .slot_in = 0,
            .slots_out = {1}};
        EXPECT_LT(Error(b.Run(fast, {piece}), a.Run(plain, {piece})),
                  kTolerance);
        EXPECT_LT(Error(b.StateSlot(1), a.StateSlot(1)), kTolerance);
        EXPECT_LT(Error(b.ConvSlot(1), a.ConvSlot(1)), kTolerance);
        EXPECT_EQ(Bits(b.StateSlot(2)), Bits(a.StateSlot(2)));
      }
    }
  }
}

// exp(-x) overflows for gates far below zero; silu must come out as zero.
TEST_P(GdnFast, GatesFarFromZeroEqualPlain) {
  Machine plain(Backend::kCpuPlain);
  Machine fast(Backend::kCpu);
  GdnLayer a(OddShape());
  for (float& x : a.z.data) x *= 3000.0f;
  for (float& x : a.qkv.data) x *= 3000.0f;
  GdnLayer b = a;
  const Piece piece{.u = a.Input(6, 20)};
  EXPECT_LT(Error(b.Run(fast, {piece}), a.Run(plain, {piece})), kTolerance);
  EXPECT_LT(Error(b.StateSlot(0), a.StateSlot(0)), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Targets,
                         GdnFast,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

}  // namespace
}  // namespace conclave::kernels
