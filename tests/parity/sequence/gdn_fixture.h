// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/parity/sequence/fixture.h"

namespace conclave::kernels {

// A Gated DeltaNet layer with weights and states. Slots hold sentinels until
// something is written to them.
struct GdnLayer {
  static constexpr float kSentinel = -12345.75f;

  explicit GdnLayer(const GdnShape& shape, int32_t slots = 4)
      : shape(shape),
        values(int64_t{shape.value_heads} * shape.value_dim),
        qkv(11, shape.channels(), shape.hidden, 0.5),
        z(12, values, shape.hidden, 0.5),
        b(13, shape.value_heads, shape.hidden, 0.5),
        a(14, shape.value_heads, shape.hidden, 0.5),
        out(15, shape.hidden, values, 0.2),
        conv(testing::Seeded(16).Floats(
            int64_t{shape.channels()} * shape.conv_kernel, 0.5)),
        a_log(testing::Seeded(17).Floats(shape.value_heads)),
        dt_bias(testing::Seeded(18).Floats(shape.value_heads)),
        norm(testing::Seeded(19).Floats(shape.value_dim)),
        conv_state(slots * ConvSize(), kSentinel),
        recurrent(slots * StateSize(), kSentinel) {}

  size_t ConvSize() const {
    return static_cast<size_t>(shape.conv_kernel - 1) * shape.channels();
  }
  size_t StateSize() const { return values * shape.key_dim; }
  std::vector<float> ConvSlot(int32_t slot) const {
    return Slice(conv_state, slot * ConvSize(), ConvSize());
  }
  std::vector<float> StateSlot(int32_t slot) const {
    return Slice(recurrent, slot * StateSize(), StateSize());
  }
  // A state as a prompt might have left it.
  void FillSlot(int32_t slot, uint32_t seed) {
    testing::Seeded seeded(seed);
    for (size_t i = 0; i < ConvSize(); ++i) {
      conv_state[slot * ConvSize() + i] = static_cast<float>(seeded.Real());
    }
    for (size_t i = 0; i < StateSize(); ++i) {
      recurrent[slot * StateSize() + i] = static_cast<float>(seeded.Real(0.3));
    }
  }

  std::vector<float> Run(Machine& machine, const std::vector<Piece>& pieces) {
    const Batch batch(pieces, shape.hidden);
    std::vector<float> result(batch.u.size(), kSentinel);
    const absl::Status status = GdnMixer(machine.context,
                                         shape,
                                         {.in_qkv = qkv.view(),
                                          .in_z = z.view(),
                                          .in_b = b.view(),
                                          .in_a = a.view(),
                                          .out = out.view(),
                                          .conv = conv,
                                          .a_log = a_log,
                                          .dt_bias = dt_bias,
                                          .norm = norm},
                                         {conv_state, recurrent},
                                         batch.step,
                                         batch.u,
                                         result);
    EXPECT_TRUE(status.ok()) << status;
    return result;
  }
  std::vector<float> Input(uint32_t seed, int32_t rows) const {
    return testing::Seeded(seed).Floats(int64_t{rows} * shape.hidden);
  }

  GdnShape shape;
  int64_t values;
  TestWeight qkv, z, b, a, out;
  std::vector<float> conv, a_log, dt_bias, norm;
  std::vector<float> conv_state, recurrent;
};

// Small, with two value heads per key head and odd vector lengths.
inline GdnShape OddShape() {
  return {.hidden = 20,
          .key_heads = 2,
          .value_heads = 4,
          .key_dim = 12,
          .value_dim = 19,
          .conv_kernel = 4};
}

// The embedded model's heads.
inline GdnShape TinyShape() {
  return {.hidden = 64,
          .key_heads = 2,
          .value_heads = 4,
          .key_dim = 128,
          .value_dim = 128,
          .conv_kernel = 4};
}

inline std::vector<GdnShape> GdnShapes() {
  return {OddShape(),
          {.hidden = 32,
           .key_heads = 1,
           .value_heads = 3,
           .key_dim = 32,
           .value_dim = 64,
           .conv_kernel = 3},
          {.hidden = 7,
           .key_heads = 3,
           .value_heads = 3,
           .key_dim = 5,
           .value_dim = 3,
           .conv_kernel = 2},
          TinyShape()};
}

}  // namespace conclave::kernels
