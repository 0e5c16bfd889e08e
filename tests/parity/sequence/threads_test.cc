// SPDX-License-Identifier: Apache-2.0
// The number of threads must not show in the bits.
#include "tests/parity/sequence/attention_fixture.h"
#include "tests/parity/sequence/gdn_fixture.h"

namespace conclave::kernels {
namespace {

TEST(SequenceThreads, GdnHasTheSameBits) {
  std::vector<std::vector<uint32_t>> outs, states;
  for (int32_t threads : {1, 2, 3}) {
    Machine machine(Backend::kCpu, threads);
    GdnLayer layer(TinyShape(), 8);
    for (int32_t slot : {0, 1}) layer.FillSlot(slot, slot);
    outs.push_back(Bits(layer.Run(
        machine,
        {{.u = layer.Input(1, 70), .cells = {64, 70}, .slots_out = {2}},
         {.u = layer.Input(2, 1), .slot_in = 0, .slots_out = {0}},
         {.u = layer.Input(3, 2), .slot_in = 1, .slots_out = {3, 4}},
         {.u = layer.Input(4, 9), .cells = {9}, .slots_out = {5}}})));
    states.push_back(Bits(layer.recurrent));
  }
  EXPECT_EQ(outs[1], outs[0]);
  EXPECT_EQ(outs[2], outs[0]);
  EXPECT_EQ(states[1], states[0]);
  EXPECT_EQ(states[2], states[0]);
}

TEST(SequenceThreads, AttentionHasTheSameBits) {
  std::vector<std::vector<uint32_t>> outs, caches;
  for (int32_t threads : {1, 2, 3}) {
    Machine machine(Backend::kCpu, threads);
    AttentionLayer layer(TinyAttention(), 8);
    layer.FillBlocks(7);
    outs.push_back(Bits(layer.Run(
        machine,
        {{.u = layer.Input(1, 70), .kv_blocks = {6, 1}},
         {.u = layer.Input(2, 1), .position = 100, .kv_blocks = {0, 5}},
         {.u = layer.Input(3, 3), .position = 62, .kv_blocks = {7, 2}}})));
    caches.push_back(Bits(layer.cache));
  }
  EXPECT_EQ(outs[1], outs[0]);
  EXPECT_EQ(outs[2], outs[0]);
  EXPECT_EQ(caches[1], caches[0]);
  EXPECT_EQ(caches[2], caches[0]);
}

}  // namespace
}  // namespace conclave::kernels
