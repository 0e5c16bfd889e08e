// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/gdn_world.h"

#include <algorithm>

#include "kernels/sequence_forms.h"
#include "tests/testing/machine.h"

namespace conclave::kernels {

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
