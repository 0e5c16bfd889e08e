// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/lanes.h"
#include "kernels/sequence_forms.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gdn_fast.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per target.
#include "kernels/cpu/gdn_cell-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

struct Mixer {
  const GdnShape& s;
  const GdnWeights& weights;
  const GdnState& state;
  const GdnRows& rows;
  int64_t channels;
  int64_t values;  // value_heads * value_dim
  int64_t tail;    // conv_kernel - 1
  float* taps;     // [conv_kernel, channels]: the transpose of weights.conv
  float* before;   // [sequences, tail, channels]: rows before the step
  float* conv;     // [rows, channels]
  float* g;        // [rows, value_heads]
  float* beta;     // [rows, value_heads]
};

// conv[t] = silu(convolution) for channels [begin, end) of one sequence.
// row(t) is the pre-convolution row t of this step, t >= -tail.
template <class Row>
HWY_INLINE void Convolve(const Mixer& m,
                         const SequenceRows& sequence,
                         const Row& row,
                         int64_t begin,
                         int64_t end) {
  for (int64_t t = 0; t < sequence.rows; ++t) {
    float* to = m.conv + (sequence.row_begin + t) * m.channels;
    for (int64_t c = begin; c < end; c += kLanes) {
      V sum = hn::Zero(F32());
      for (int64_t j = 0; j <= m.tail; ++j) {
        sum = hn::MulAdd(LoadUpTo(m.taps + j * m.channels + c, end - c),
                         LoadUpTo(row(t - m.tail + j) + c, end - c),
                         sum);
      }
      StoreUpTo(SiluOf(sum), to + c, end - c);
    }
  }
}

// Segments are the heads of q, k and v in the order of the channels.
// Convolves one of one sequence, norms it, and stores its part of the state.
void MixSegment(const Mixer& m,
                const SequenceRows& sequence,
                float* before,
                int64_t segment) {
  const int64_t keys = 2 * m.s.key_heads;
  const bool is_key = segment < keys;
  const int64_t begin =
      is_key ? segment * m.s.key_dim
             : keys * m.s.key_dim + (segment - keys) * m.s.value_dim;
  const int64_t count = is_key ? m.s.key_dim : m.s.value_dim;
  const auto slot = [&](int64_t index, int64_t j) {
    return m.state.conv.data() + (index * m.tail + j) * m.channels + begin;
  };
  for (int64_t j = 0; j < m.tail; ++j) {
    float* to = before + j * m.channels + begin;
    if (sequence.state_slot_in < 0) {
      std::fill_n(to, count, 0.0f);
    } else {
      std::copy_n(slot(sequence.state_slot_in, j), count, to);
    }
  }
  for (int64_t j = 0; j <= m.tail; ++j) {
    for (int64_t c = begin; c < begin + count; ++c) {
      m.taps[j * m.channels + c] = m.weights.conv[c * (m.tail + 1) + j];
    }
  }
  const float* mixed = m.rows.mixed.data() + sequence.row_begin * m.channels;
  const auto row = [&](int64_t t) -> const float* {
    return t < 0 ? before + (t + m.tail) * m.channels : mixed + t * m.channels;
  };
  Convolve(m, sequence, row, begin, begin + count);
  if (is_key) {
    const float scale = segment < m.s.key_heads
                            ? 1.0f / std::sqrt(static_cast<float>(m.s.key_dim))
                            : 1.0f;
    for (int64_t t = 0; t < sequence.rows; ++t) {
      float* x = m.conv + (sequence.row_begin + t) * m.channels + begin;
      const float sum = DotOf(x, x, count);
      ScaleRow(scale / std::sqrt(sum + 1e-6f), x, count);
    }
  }
  const auto outs = sequence.state_slots_out;
  for (size_t i = 0; i < outs.size(); ++i) {
    const int64_t last = outs.size() == 1 ? sequence.rows - 1 : i;
    for (int64_t j = 0; j < m.tail; ++j) {
      std::copy_n(row(last - m.tail + 1 + j) + begin, count, slot(outs[i], j));
    }
  }
}

// y = w * (o / rms(o)) * silu(z), norm before gate, in place.
HWY_INLINE void GateRow(const Mixer& m, const float* z, float* y) {
  const F32 df;
  const int64_t n = m.s.value_dim;
  const float mean = DotOf(y, y, n) / static_cast<float>(n);
  const V factor = hn::Set(df, 1.0f / std::sqrt(mean + m.s.eps));
  for (int64_t j = 0; j < n; j += kLanes) {
    const V o = hn::Mul(LoadUpTo(y + j, n - j), factor);
    const V w = hn::Mul(o, LoadUpTo(m.weights.norm.data() + j, n - j));
    StoreUpTo(hn::Mul(w, SiluOf(LoadUpTo(z + j, n - j))), y + j, n - j);
  }
}

void Gates(const Mixer& m, const SequenceRows& sequence, int64_t head) {
  const float a = std::exp(m.weights.a_log[head]);
  for (int64_t t = 0; t < sequence.rows; ++t) {
    const int64_t at = (sequence.row_begin + t) * m.s.value_heads + head;
    const float x = m.rows.a[at] + m.weights.dt_bias[head];
    m.g[at] = -a * (x > 20.0f ? x : std::log1p(std::exp(x)));
    m.beta[at] = 1.0f / (1.0f + std::exp(-m.rows.b[at]));
  }
}

// All rows of one value head of one sequence; states go to their slots.
void RunHead(const Mixer& m,
             const SequenceRows& sequence,
             int64_t head,
             float* scratch) {
  const GdnShape& s = m.s;
  const int64_t first = sequence.row_begin;
  const int64_t size = int64_t{s.key_dim} * s.value_dim;
  const auto at = [&](int64_t slot) {
    return m.state.recurrent.data() + (slot * s.value_heads + head) * size;
  };
  Gates(m, sequence, head);
  const int64_t key_head = head / (s.value_heads / s.key_heads);
  const float* conv = m.conv + first * m.channels;
  const HeadRows h{
      .key_dim = s.key_dim,
      .value_dim = s.value_dim,
      .q = conv + key_head * s.key_dim,
      .k = conv + (s.key_heads + key_head) * s.key_dim,
      .v = conv + int64_t{2} * s.key_heads * s.key_dim + head * s.value_dim,
      .row = m.channels,
      .g = m.g + first * s.value_heads + head,
      .beta = m.beta + first * s.value_heads + head,
      .gate_row = s.value_heads,
      .o = m.rows.y.data() + first * m.values + head * s.value_dim,
      .o_row = m.values};
  const auto outs = sequence.state_slots_out;
  float* out = at(outs[0]);
  const float* in = out;
  if (sequence.state_slot_in < 0) {
    std::fill_n(out, size, 0.0f);
  } else {
    in = at(sequence.state_slot_in);
  }
  if (sequence.cells.empty()) {
    for (int64_t t = 0; t < sequence.rows; ++t) {
      if (outs.size() > 1) out = at(outs[t]);
      RecurrentStep(h.From(t), in, out);
      in = out;
    }
  } else {
    const CellScratch cell(scratch, s.key_dim);
    int64_t begin = 0;
    for (const int32_t end : sequence.cells) {
      ChunkedCell(h.From(begin), end - begin, cell, in, out);
      in = out;
      begin = end;
    }
  }
  for (int64_t t = 0; t < sequence.rows; ++t) {
    const int64_t row = (first + t) * m.values + head * s.value_dim;
    GateRow(m, m.rows.z.data() + row, m.rows.y.data() + row);
  }
}

void GdnImpl(const Context& context,
             const GdnShape& s,
             const GdnWeights& weights,
             const GdnState& state,
             const StepBatch& batch,
             const GdnRows& rows) {
  const Workspace::Scope scope(context.workspace);
  Workspace& workspace = *context.workspace;
  const auto floats = [&](int64_t n) { return workspace.Floats(n).data(); };
  const auto sequences = static_cast<int64_t>(batch.sequences.size());
  const int64_t channels = s.channels();
  const int64_t tail = s.conv_kernel - 1;
  const Mixer m{.s = s,
                .weights = weights,
                .state = state,
                .rows = rows,
                .channels = channels,
                .values = int64_t{s.value_heads} * s.value_dim,
                .tail = tail,
                .taps = floats(channels * (tail + 1)),
                .before = floats(sequences * tail * channels),
                .conv = floats(batch.rows * channels),
                .g = floats(int64_t{batch.rows} * s.value_heads),
                .beta = floats(int64_t{batch.rows} * s.value_heads)};
  const int64_t segments = 2 * s.key_heads + s.value_heads;
  // A task is a segment of all sequences: they share its taps.
  ForTasks(
      context,
      LanesFor(context, segments, 16 * batch.rows * channels),
      segments,
      [&](int64_t, int64_t segment) HWY_ATTR {
        for (int64_t i = 0; i < sequences; ++i) {
          MixSegment(
              m, batch.sequences[i], m.before + i * tail * channels, segment);
        }
      });
  const int64_t tasks = sequences * s.value_heads;
  const int64_t size = int64_t{s.key_dim} * s.value_dim;
  const int64_t lanes =
      LanesFor(context, tasks, 4 * size * s.value_heads * batch.rows);
  const auto scratch =
      static_cast<int64_t>(CellScratch::Size(s.key_dim, s.value_dim));
  float* memory = floats(lanes * scratch);
  ForTasks(context, lanes, tasks, [&](int64_t lane, int64_t task) HWY_ATTR {
    RunHead(m,
            batch.sequences[task / s.value_heads],
            task % s.value_heads,
            memory + lane * scratch);
  });
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels::fast {

HWY_EXPORT(GdnImpl);

void Gdn(const Context& context,
         const GdnShape& shape,
         const GdnWeights& weights,
         const GdnState& state,
         const StepBatch& batch,
         const GdnRows& rows) {
  HWY_DYNAMIC_DISPATCH(GdnImpl)(context, shape, weights, state, batch, rows);
}

}  // namespace conclave::kernels::fast
#endif  // HWY_ONCE
