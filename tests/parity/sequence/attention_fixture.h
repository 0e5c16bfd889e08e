// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/parity/sequence/fixture.h"

namespace conclave::kernels {

// A gated attention layer with weights and a KV cache full of sentinels.
struct AttentionLayer {
  static constexpr float kSentinel = -12345.75f;

  explicit AttentionLayer(const AttentionShape& shape, int32_t blocks)
      : shape(shape),
        q(21, int64_t{shape.heads} * 2 * shape.head_dim, shape.hidden, 0.5),
        k(22, int64_t{shape.kv_heads} * shape.head_dim, shape.hidden, 0.5),
        v(23, int64_t{shape.kv_heads} * shape.head_dim, shape.hidden, 0.5),
        o(24, shape.hidden, int64_t{shape.heads} * shape.head_dim, 0.2),
        q_norm(testing::Seeded(25).Floats(shape.head_dim, 2.0)),
        k_norm(testing::Seeded(26).Floats(shape.head_dim, 2.0)),
        cache(blocks * BlockSize(), kSentinel) {}

  size_t BlockSize() const {
    return size_t{2} * shape.kv_heads * shape.block_tokens * shape.head_dim;
  }
  // Keys and values as earlier tokens might have left them.
  void FillBlocks(uint32_t seed) {
    cache = testing::Seeded(seed).Floats(cache.size());
  }
  std::vector<float> Run(Machine& machine, const std::vector<Piece>& pieces) {
    const Batch batch(pieces, shape.hidden);
    std::vector<float> result(batch.u.size(), kSentinel);
    const absl::Status status = GatedAttention(machine.context,
                                               shape,
                                               {.q = q.view(),
                                                .k = k.view(),
                                                .v = v.view(),
                                                .o = o.view(),
                                                .q_norm = q_norm,
                                                .k_norm = k_norm},
                                               {cache},
                                               batch.step,
                                               batch.u,
                                               result);
    EXPECT_TRUE(status.ok()) << status;
    return result;
  }
  std::vector<float> Input(uint32_t seed, int32_t rows) const {
    return testing::Seeded(seed).Floats(int64_t{rows} * shape.hidden);
  }

  AttentionShape shape;
  TestWeight q, k, v, o;
  std::vector<float> q_norm, k_norm, cache;
};

// The embedded model's heads.
inline AttentionShape TinyAttention() {
  return {.hidden = 32,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 256,
          .rotary_dim = 64,
          .block_tokens = 64};
}

// Three query heads per KV head, odd lengths, short blocks, fast rotation.
inline AttentionShape OddAttention() {
  return {.hidden = 13,
          .heads = 6,
          .kv_heads = 2,
          .head_dim = 22,
          .rotary_dim = 10,
          .rope_theta = 100.0,
          .block_tokens = 5};
}

}  // namespace conclave::kernels
