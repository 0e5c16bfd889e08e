// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/gdn_world.h"

#include <algorithm>

#include "kernels/sequence_forms.h"
#include "tests/testing/machine.h"

namespace conclave::kernels {

std::vector<GdnPiece> MixedPieces() {
  return {
      {.rows = 1, .position = 5, .slot_in = 0, .slots_out = {0}, .seed = 1},
      {.rows = 70, .slots_out = {5}, .seed = 2},
      {.rows = 1, .position = 2, .slot_in = 1, .slots_out = {6}, .seed = 3},
      {.rows = 3,
       .position = 9,
       .slot_in = 2,
       .slots_out = {7, 2, 8},
       .seed = 4},
      {.rows = 1, .seed = 5},
      {.rows = 17, .position = 64, .slot_in = 3, .slots_out = {3}, .seed = 6}};
}

void GdnWorld::FillSlots(const std::vector<GdnPiece>& pieces) {
  for (const GdnPiece& piece : pieces) {
    if (piece.slot_in < 0) continue;
    FillSlot(piece.slot_in, piece.position, 40 + piece.slot_in);
  }
}

DeviceBuffer GdnWorld::UpStates() {
  if (dtype_ == GdnDType::kF32) return Up(*queue_, recurrent);
  std::vector<uint16_t> rounded;
  for (const float x : recurrent) rounded.push_back(ToBf16(x));
  return Up(*queue_, rounded);
}

std::vector<float> GdnWorld::DownFloats(const DeviceBuffer& from,
                                        size_t count,
                                        bool bf16) {
  if (!bf16) return Down(*queue_, from.as<float>(), count);
  std::vector<float> out;
  for (const uint16_t x : Down(*queue_, from.as<uint16_t>(), count)) {
    out.push_back(FromBf16(x));
  }
  return out;
}

std::vector<float> GdnWorld::Plain(const std::vector<GdnPiece>& pieces) {
  GdnWeights weights;
  weights.conv = conv_;
  weights.a_log = a_log_;
  weights.dt_bias = dt_bias_;
  weights.norm = norm_;
  const GdnState state = {plain_conv, plain_recurrent};
  Machine machine(Backend::kCpuPlain);
  const size_t heads = shape.value_heads;
  const size_t widths[4] = {Channels(), Values(), heads, heads};
  std::vector<float> out;
  for (const GdnPiece& piece : pieces) {
    const auto rows = Projected(piece);
    std::vector<float> parts[4];  // mixed, z, b, a
    const float* at = rows.data();
    for (int32_t row = 0; row < piece.rows; ++row) {
      for (int i = 0; i < 4; ++i) {
        parts[i].insert(parts[i].end(), at, at + widths[i]);
        at += widths[i];
      }
    }
    std::vector<float> y(piece.rows * Values());
    SequenceRows sequence;
    sequence.rows = piece.rows;
    sequence.position = piece.position;
    sequence.state_slot_in = piece.slot_in;
    auto slots_out = piece.slots_out;
    std::replace(slots_out.begin(), slots_out.end(), -1, slots);
    sequence.state_slots_out = slots_out;
    const GdnRows all = {parts[0], parts[1], parts[2], parts[3], y};
    plain::Gdn(machine.context, shape, weights, state, sequence, all);
    out.insert(out.end(), y.begin(), y.end());
  }
  return out;
}

}  // namespace conclave::kernels
