// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/linear.h"
#include "kernels/sequence_forms.h"

namespace conclave::kernels {
namespace {

void CheckSequence(const AttentionShape& shape,
                   const KvCache& cache,
                   const SequenceRows& sequence) {
  const size_t block = 2 * static_cast<size_t>(shape.kv_heads) *
                       shape.block_tokens * shape.head_dim;
  const auto blocks = static_cast<int32_t>(cache.data.size() / block);
  CONCLAVE_CHECK_GE(sequence.rows, 1);
  CONCLAVE_CHECK_GE(sequence.position, 0);
  CONCLAVE_CHECK_GE(
      sequence.kv_blocks.size() * static_cast<size_t>(shape.block_tokens),
      static_cast<size_t>(sequence.position + sequence.rows));
  for (const int32_t b : sequence.kv_blocks) {
    CONCLAVE_CHECK(b >= 0 && b < blocks);
  }
}

template <typename T>
std::span<T> RowsOf(std::span<T> all, const SequenceRows& s, size_t cols) {
  return all.subspan(s.row_begin * cols, s.rows * cols);
}

}  // namespace

absl::Status GatedAttention(const Context& context,
                            const AttentionShape& shape,
                            const AttentionWeights& weights,
                            const KvCache& cache,
                            const StepBatch& batch,
                            std::span<const float> u,
                            std::span<float> out) {
  const Workspace::Scope scope(context.workspace);
  const auto rows = static_cast<size_t>(batch.rows);
  const size_t heads = static_cast<size_t>(shape.heads) * shape.head_dim;
  const size_t kv = static_cast<size_t>(shape.kv_heads) * shape.head_dim;
  CONCLAVE_CHECK_EQ(shape.heads % shape.kv_heads, 0);
  CONCLAVE_CHECK_EQ(u.size(), rows * shape.hidden);
  std::span<float> q = context.workspace->Floats(rows * 2 * heads);
  std::span<float> k = context.workspace->Floats(rows * kv);
  std::span<float> v = context.workspace->Floats(rows * kv);
  std::span<float> y = context.workspace->Floats(rows * heads);
  RETURN_IF_ERROR(MatMul(context, u, batch.rows, weights.q, q));
  RETURN_IF_ERROR(MatMul(context, u, batch.rows, weights.k, k));
  RETURN_IF_ERROR(MatMul(context, u, batch.rows, weights.v, v));
  const AttentionRows all{.q = q, .k = k, .v = v, .y = y};
  for (const SequenceRows& sequence : batch.sequences) {
    CheckSequence(shape, cache, sequence);
    if (context.backend != Backend::kCpuPlain) continue;
    plain::Attention(context,
                     shape,
                     weights,
                     cache,
                     sequence,
                     {.q = RowsOf(all.q, sequence, 2 * heads),
                      .k = RowsOf(all.k, sequence, kv),
                      .v = RowsOf(all.v, sequence, kv),
                      .y = RowsOf(all.y, sequence, heads)});
  }
  if (context.backend != Backend::kCpuPlain) {
    fast::Attention(context, shape, weights, cache, batch, all);
  }
  return MatMul(context, y, batch.rows, weights.o, out);
}

}  // namespace conclave::kernels
