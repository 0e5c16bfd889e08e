// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/lanes.h"
#include "kernels/sequence_forms.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_fast.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per target.
#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

// A unit is one query head of one row. The units of one KV head share keys
// and values: they run in tiles, four at a time.
constexpr int64_t kTileUnits = 16;
constexpr int64_t kGroup = 4;

struct Attender {
  const AttentionShape& s;
  const AttentionWeights& weights;
  const KvCache& cache;
  const StepBatch& batch;
  const AttentionRows& rows;
  const double* frequencies;  // [rotary_dim / 2]

  // Key (part 0) or value (part 1) of the first position of a block.
  float* Block(int64_t block, int64_t part, int64_t head) const {
    return cache.data.data() + ((block * 2 + part) * s.kv_heads + head) *
                                   s.block_tokens * s.head_dim;
  }
};

// Norm, then RoPE with the row's cosines and sines, in place.
HWY_INLINE void NormAndRotate(const AttentionShape& s,
                              const float* w,
                              const float* cosines,
                              const float* sines,
                              float* x) {
  const F32 df;
  const int64_t n = s.head_dim;
  const float mean = DotOf(x, x, n) / static_cast<float>(n);
  const V factor = hn::Set(df, 1.0f / std::sqrt(mean + s.eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const V y = hn::Mul(LoadUpTo(x + i, n - i), factor);
    StoreUpTo(hn::Mul(y, LoadUpTo(w + i, n - i)), x + i, n - i);
  }
  const int64_t half = s.rotary_dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t count = half - i;
    const V a = LoadUpTo(x + i, count);
    const V b = LoadUpTo(x + half + i, count);
    const V c = LoadUpTo(cosines + i, count);
    const V d = LoadUpTo(sines + i, count);
    StoreUpTo(hn::NegMulAdd(b, d, hn::Mul(a, c)), x + i, count);
    StoreUpTo(hn::MulAdd(a, d, hn::Mul(b, c)), x + half + i, count);
  }
}

// Queries of one row in place, its keys and values to the cache.
void PrepareRow(const Attender& m, int64_t row, float* scratch) {
  const AttentionShape& s = m.s;
  const auto after = std::upper_bound(
      m.batch.sequences.begin(),
      m.batch.sequences.end(),
      row,
      [](int64_t r, const SequenceRows& q) { return r < q.row_begin; });
  const SequenceRows& sequence = *(after - 1);
  const int64_t position = sequence.position + row - sequence.row_begin;
  const int64_t half = s.rotary_dim / 2;
  float* cosines = scratch;
  float* sines = scratch + half;
  for (int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * m.frequencies[i];
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
  for (int64_t h = 0; h < s.heads; ++h) {
    float* q = m.rows.q.data() + (row * s.heads + h) * 2 * s.head_dim;
    NormAndRotate(s, m.weights.q_norm.data(), cosines, sines, q);
  }
  const int64_t block = sequence.kv_blocks[position / s.block_tokens];
  const int64_t offset = position % s.block_tokens * s.head_dim;
  for (int64_t h = 0; h < s.kv_heads; ++h) {
    const int64_t at = (row * s.kv_heads + h) * s.head_dim;
    float* key = m.Block(block, 0, h) + offset;
    std::copy_n(m.rows.k.data() + at, s.head_dim, key);
    NormAndRotate(s, m.weights.k_norm.data(), cosines, sines, key);
    std::copy_n(
        m.rows.v.data() + at, s.head_dim, m.Block(block, 1, h) + offset);
  }
}

// Memory of one tile.
struct TileScratch {
  int64_t q_row, score_row;
  float *q, *y, *scores;  // [kTileUnits, q_row], [.., head_dim], [kGroup, ..]

  explicit TileScratch(const AttentionShape& s)
      : q_row(PaddedCols(s.head_dim)), score_row(PaddedCols(s.block_tokens)) {}
  int64_t Size(const AttentionShape& s) const {
    return kTileUnits * (q_row + s.head_dim) + kGroup * score_row;
  }
  void Place(const AttentionShape& s, float* memory) {
    q = memory;
    y = q + kTileUnits * q_row;
    scores = y + kTileUnits * s.head_dim;
  }
};

// Running softmax of one unit.
struct Softmax {
  float largest = -std::numeric_limits<float>::infinity();
  float total = 0.0f;

  // Turns `count` scores into weights; returns the factor of what was summed
  // before. Scores are padded to whole steps.
  HWY_INLINE float Add(float* scores, int64_t count) {
    const F32 df;
    const int64_t padded = PaddedCols(count);
    std::fill(scores + count,
              scores + padded,
              -std::numeric_limits<float>::infinity());
    V top = hn::Set(df, largest);
    for (int64_t i = 0; i < padded; i += kLanes) {
      top = hn::Max(top, hn::LoadU(df, scores + i));
    }
    const V most = hn::MaxOfLanes(df, top);
    V sum = hn::Zero(df);
    for (int64_t i = 0; i < padded; i += kLanes) {
      const V e = hn::Exp(df, hn::Sub(hn::LoadU(df, scores + i), most));
      hn::StoreU(e, df, scores + i);
      sum = hn::Add(sum, e);
    }
    const float before = largest;
    largest = hn::GetLane(most);
    const float factor = std::exp(before - largest);
    total = total * factor + SumLanes(sum);
    return factor;
  }
};

// One query tile against one KV block of one KV head.
struct BlockOf {
  const float* keys;
  const float* values;
  int64_t begin;  // its first position
};

// Units [first, first + count), count <= kGroup; limit(u) is how many
// positions unit u sees.
template <class Limit>
HWY_INLINE void AddBlock(const AttentionShape& s,
                         const BlockOf& block,
                         int64_t first,
                         int64_t count,
                         const Limit& limit,
                         const TileScratch& t,
                         Softmax* softmax) {
  const auto seen = [&](int64_t u) {
    return std::clamp<int64_t>(
        limit(first + u) - block.begin, 0, s.block_tokens);
  };
  const int64_t most = seen(count - 1);  // limits ascend
  if (most == 0) return;
  const WeightView keys{
      block.keys, DType::kF32, s.block_tokens, s.head_dim, s.head_dim};
  DotBlockOf<PlainRow<float>>(
      {t.q + first * t.q_row, t.q_row},
      count,
      keys,
      0,
      most,
      [&](int64_t u, int64_t position, V4 v, int64_t n)
          HWY_ATTR { StoreFour(v, n, t.scores + u * t.score_row + position); });
  for (int64_t u = 0; u < count; ++u) {
    if (seen(u) == 0) continue;
    const float factor =
        softmax[first + u].Add(t.scores + u * t.score_row, seen(u));
    ScaleRow(factor, t.y + (first + u) * s.head_dim, s.head_dim);
  }
  const auto add = [&](int64_t u, int64_t units, int64_t depth) HWY_ATTR {
    float* y = t.y + (first + u) * s.head_dim;
    Multiply({.a = {t.scores + u * t.score_row, t.score_row},
              .b = {block.values, s.head_dim},
              .in = {y, s.head_dim},
              .out = y,
              .out_row = s.head_dim,
              .rows = units,
              .depth = depth,
              .cols = s.head_dim});
  };
  if (seen(0) == most) {
    add(0, count, most);
  } else {
    for (int64_t u = 0; u < count; ++u) add(u, 1, seen(u));
  }
}

// y <- y / total * sigmoid(gate).
HWY_INLINE void FinishUnit(const AttentionShape& s,
                           float total,
                           const float* sums,
                           const float* gate,
                           float* y) {
  const V divisor = hn::Set(F32(), total);
  const int64_t n = s.head_dim;
  for (int64_t i = 0; i < n; i += kLanes) {
    const V mean = hn::Div(LoadUpTo(sums + i, n - i), divisor);
    const V g = OnePlusExpMinus(LoadUpTo(gate + i, n - i));
    StoreUpTo(hn::Div(mean, g), y + i, n - i);
  }
}

// Units [begin, begin + count) of one KV head: unit u is query head
// u % group of row u / group. The grid of positions starts at 0 for every row,
// so that its bits do not depend on how many rows come at once.
void AttendTile(const Attender& m,
                const SequenceRows& sequence,
                int64_t kv_head,
                int64_t begin,
                int64_t count,
                const TileScratch& t) {
  const AttentionShape& s = m.s;
  const int64_t group = s.heads / s.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  const auto at = [&](int64_t u) {  // of the unit in [rows, heads]
    return (sequence.row_begin + (begin + u) / group) * s.heads +
           kv_head * group + (begin + u) % group;
  };
  const auto limit = [&](int64_t u) {
    return sequence.position + (begin + u) / group + 1;
  };
  Softmax softmax[kTileUnits];
  for (int64_t u = 0; u < count; ++u) {
    float* q = t.q + u * t.q_row;
    PackRow(false, m.rows.q.data() + at(u) * 2 * s.head_dim, s.head_dim, q);
    ScaleRow(scale, q, t.q_row);
  }
  std::fill_n(t.y, count * s.head_dim, 0.0f);
  const int64_t positions = limit(count - 1);
  for (int64_t p = 0; p < positions; p += s.block_tokens) {
    const int64_t block = sequence.kv_blocks[p / s.block_tokens];
    const BlockOf kv{m.Block(block, 0, kv_head), m.Block(block, 1, kv_head), p};
    for (int64_t u = 0; u < count; u += kGroup) {
      AddBlock(s, kv, u, std::min(kGroup, count - u), limit, t, softmax);
    }
  }
  for (int64_t u = 0; u < count; ++u) {
    FinishUnit(s,
               softmax[u].total,
               t.y + u * s.head_dim,
               m.rows.q.data() + (at(u) * 2 + 1) * s.head_dim,
               m.rows.y.data() + at(u) * s.head_dim);
  }
}

struct TileTask {
  const SequenceRows* sequence;
  int64_t kv_head, begin, count;
};

std::vector<TileTask> PlanTiles(const AttentionShape& s,
                                const StepBatch& batch,
                                int64_t& macs) {
  std::vector<TileTask> tasks;
  const int64_t group = s.heads / s.kv_heads;
  for (const SequenceRows& sequence : batch.sequences) {
    const int64_t units = sequence.rows * group;
    // Few units: small tiles, so that all threads find some.
    const int64_t tile = units > 4 * kTileUnits ? kTileUnits : kGroup;
    macs += 2 * int64_t{sequence.rows} * s.heads * s.head_dim *
            (sequence.position + sequence.rows);
    for (int64_t h = 0; h < s.kv_heads; ++h) {
      for (int64_t u = 0; u < units; u += tile) {
        tasks.push_back({&sequence, h, u, std::min(tile, units - u)});
      }
    }
  }
  return tasks;
}

void AttentionImpl(const Context& context,
                   const AttentionShape& s,
                   const AttentionWeights& weights,
                   const KvCache& cache,
                   const StepBatch& batch,
                   const AttentionRows& rows) {
  const Workspace::Scope scope(context.workspace);
  std::vector<double> frequencies(s.rotary_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(s.rope_theta, -2.0 * i / s.rotary_dim);
  }
  const Attender m{s, weights, cache, batch, rows, frequencies.data()};
  // Cosines and sines weigh more than the norms: 64 per pair.
  const int64_t row_macs = int64_t{64} * s.rotary_dim +
                           int64_t{8} * (s.heads + s.kv_heads) * s.head_dim;
  const int64_t row_lanes =
      LanesFor(context, batch.rows, batch.rows * row_macs);
  float* angles = context.workspace->Floats(row_lanes * s.rotary_dim).data();
  ForTasks(
      context, row_lanes, batch.rows, [&](int64_t lane, int64_t row) HWY_ATTR {
        PrepareRow(m, row, angles + lane * s.rotary_dim);
      });
  int64_t macs = 0;
  const std::vector<TileTask> tasks = PlanTiles(s, batch, macs);
  const auto count = static_cast<int64_t>(tasks.size());
  const int64_t lanes = LanesFor(context, count, macs);
  const TileScratch layout(s);
  const int64_t size = layout.Size(s);
  float* memory = context.workspace->Floats(lanes * size).data();
  ForTasks(context, lanes, count, [&](int64_t lane, int64_t i) HWY_ATTR {
    TileScratch scratch = layout;
    scratch.Place(s, memory + lane * size);
    const TileTask& task = tasks[i];
    AttendTile(
        m, *task.sequence, task.kv_head, task.begin, task.count, scratch);
  });
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels::fast {

HWY_EXPORT(AttentionImpl);

void Attention(const Context& context,
               const AttentionShape& shape,
               const AttentionWeights& weights,
               const KvCache& cache,
               const StepBatch& batch,
               const AttentionRows& rows) {
  HWY_DYNAMIC_DISPATCH(AttentionImpl)
  (context, shape, weights, cache, batch, rows);
}

}  // namespace conclave::kernels::fast
#endif  // HWY_ONCE
