// SPDX-License-Identifier: Apache-2.0
#include "kernels/gdn.h"

#include "common/check.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/int8.h"
#include "kernels/linear.h"
#include "kernels/sequence_forms.h"

namespace conclave::kernels {
namespace {

void CheckSequence(const GdnShape& shape,
                   const GdnState& state,
                   const SequenceRows& sequence) {
  const size_t conv = static_cast<size_t>(shape.conv_kernel - 1) *
                      static_cast<size_t>(shape.channels());
  const auto slots = static_cast<int32_t>(state.conv.size() / conv);
  CONCLAVE_CHECK_GE(sequence.rows, 1);
  CONCLAVE_CHECK_LT(sequence.state_slot_in, slots);
  const size_t outs = sequence.state_slots_out.size();
  CONCLAVE_CHECK(outs == 1 || (sequence.cells.empty() &&
                               outs == static_cast<size_t>(sequence.rows)));
  for (const int32_t slot : sequence.state_slots_out) {
    CONCLAVE_CHECK(slot >= 0 && slot < slots);
  }
  int32_t begin = 0;
  for (const int32_t end : sequence.cells) {
    CONCLAVE_CHECK(end > begin && end - begin <= limits::kGdnCellRows);
    begin = end;
  }
  CONCLAVE_CHECK(sequence.cells.empty() || begin == sequence.rows);
}

template <typename T>
std::span<T> RowsOf(std::span<T> all, const SequenceRows& s, size_t cols) {
  return all.subspan(s.row_begin * cols, s.rows * cols);
}

}  // namespace

absl::Status GdnMixer(const Context& context,
                      const GdnShape& shape,
                      const GdnWeights& weights,
                      const GdnState& state,
                      const StepBatch& batch,
                      std::span<const float> u,
                      std::span<float> out) {
  const Workspace::Scope scope(context.workspace);
  const auto rows = static_cast<size_t>(batch.rows);
  const auto channels = static_cast<size_t>(shape.channels());
  const auto heads = static_cast<size_t>(shape.value_heads);
  const size_t values = heads * static_cast<size_t>(shape.value_dim);
  CONCLAVE_CHECK_EQ(shape.value_heads % shape.key_heads, 0);
  CONCLAVE_CHECK_EQ(u.size(), rows * shape.hidden);
  std::span<float> mixed = context.workspace->Floats(rows * channels);
  std::span<float> z = context.workspace->Floats(rows * values);
  std::span<float> b = context.workspace->Floats(rows * heads);
  std::span<float> a = context.workspace->Floats(rows * heads);
  std::span<float> y = context.workspace->Floats(rows * values);
  RETURN_IF_ERROR(MatMul(context, u, batch.rows, weights.in_qkv, mixed));
  RETURN_IF_ERROR(MatMul(context, u, batch.rows, weights.in_z, z));
  // How much a state keeps and takes: few rows, and errors add up.
  const Context exact = WithFloats(context);
  RETURN_IF_ERROR(MatMul(exact, u, batch.rows, weights.in_b, b));
  RETURN_IF_ERROR(MatMul(exact, u, batch.rows, weights.in_a, a));
  const GdnRows all{.mixed = mixed, .z = z, .b = b, .a = a, .y = y};
  for (const SequenceRows& sequence : batch.sequences) {
    CheckSequence(shape, state, sequence);
    if (context.backend != Backend::kCpuPlain) continue;
    plain::Gdn(context,
               shape,
               weights,
               state,
               sequence,
               {.mixed = RowsOf(all.mixed, sequence, channels),
                .z = RowsOf(all.z, sequence, values),
                .b = RowsOf(all.b, sequence, heads),
                .a = RowsOf(all.a, sequence, heads),
                .y = RowsOf(all.y, sequence, values)});
  }
  if (context.backend != Backend::kCpuPlain) {
    fast::Gdn(context, shape, weights, state, batch, all);
  }
  return MatMul(context, y, batch.rows, weights.out, out);
}

}  // namespace conclave::kernels
