// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/dense_twins.h"
#include "kernels/int8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moe_fast.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per target.
#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/dot-inl.h"

#ifndef CONCLAVE_KERNELS_CPU_FFN_
#define CONCLAVE_KERNELS_CPU_FFN_
namespace conclave::kernels {

// Entries that one pass over a slice's weights serves. They are of one slice.
constexpr int64_t kTileEntries = 64;
struct EntryTile {
  int32_t slice, begin, end;
};

// The experts of one layer. gate, up and down start with slice 0's rows.
struct Ffn {
  WeightView gate, up;  // [slices * width, hidden]
  WeightView down;      // [slices * hidden, width]
  int64_t hidden = 0, width = 0;
};

}  // namespace conclave::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t kMacsPerTask = 64 * 1024;
constexpr int64_t kElementsPerTask = 32 * 1024;
// Columns of the intermediate (whole packing steps) and of hidden per task.
constexpr int64_t kColumns = kPackedColumns;

// x / (1 + exp(-x)), for any x: exp's argument is never positive.
HWY_INLINE V Silu(V x) {
  const F32 df;
  const V one = hn::Set(df, 1.0f);
  const V e = hn::Exp(df, hn::Neg(hn::Abs(x)));
  const V numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(df)), e, one);
  return hn::Mul(x, hn::Div(numerator, hn::Add(one, e)));
}

// One input, packed for the gate's and for the up's storage.
struct Inputs {
  PackedRows gate, up;
};

// Columns [begin, end) of silu(gate x) * (up x) for a tile's entries, packed.
void GateUp(const Ffn& ffn,
            const EntryTile& tile,
            const Inputs& x,
            const ExpertEntries& entries,
            int64_t begin,
            int64_t end,
            const PackedRows& packed,
            float* to) {
  HWY_ALIGN float gate[kTileEntries * kColumns];
  HWY_ALIGN float up[kTileEntries * kColumns];
  const int64_t rows = tile.end - tile.begin;
  if (end - begin < kColumns) {  // the padding must come out as zeros
    std::fill_n(gate, rows * kColumns, 0.0f);
    std::fill_n(up, rows * kColumns, 0.0f);
  }
  const int32_t* row = entries.row.data() + tile.begin;
  const auto dot =
      [&](const PackedRows& in, const WeightView& w, float* to) HWY_ATTR {
        DotBlock({in.data, in.stride, row, in.form},
                 rows,
                 Rows(w, tile.slice * ffn.width, ffn.width),
                 begin,
                 end,
                 [&](int64_t r, int64_t o, V4 v, int64_t count) HWY_ATTR {
                   StoreFour(v, count, to + r * kColumns + o - begin);
                 });
      };
  dot(x.gate, ffn.gate, gate);
  dot(x.up, ffn.up, up);
  const F32 df;
  const int64_t columns = PaddedCols(end - begin);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = r * kColumns; i < r * kColumns + columns; i += kLanes) {
      const V product =
          hn::Mul(Silu(hn::Load(df, gate + i)), hn::Load(df, up + i));
      hn::Store(product, df, gate + i);
    }
    PackColumns(packed.form,
                gate + r * kColumns,
                ffn.width,
                begin,
                end,
                to + (tile.begin + r) * packed.stride);
  }
}

// out[row] += weight * down(...) for columns [begin, end), entry by entry.
void Down(const Ffn& ffn,
          const EntryTile& tile,
          const PackedRows& packed,
          const ExpertEntries& entries,
          int64_t begin,
          int64_t end,
          float* out) {
  const PackedRows x{.data = packed.data + tile.begin * packed.stride,
                     .stride = packed.stride,
                     .form = packed.form};
  DotBlock(x,
           tile.end - tile.begin,
           Rows(ffn.down, tile.slice * ffn.hidden, ffn.hidden),
           begin,
           end,
           [&](int64_t r, int64_t o, V4 v, int64_t count) HWY_ATTR {
             const int64_t e = tile.begin + r;
             float* to = out + entries.row[e] * ffn.hidden + o;
             const V4 weight = hn::Set(F32x4(), entries.weight[e]);
             StoreFour(hn::MulAdd(weight, v, LoadFour(to, count)), count, to);
           });
}

void GateUpAll(const Context& context,
               const Ffn& ffn,
               const ExpertEntries& entries,
               std::span<const EntryTile> tiles,
               const Inputs& x,
               const PackedRows& packed,
               float* to) {
  const int64_t blocks = (ffn.width + kColumns - 1) / kColumns;
  const int64_t tasks = blocks * static_cast<int64_t>(tiles.size());
  const int64_t macs = entries.row.size() * 2 * ffn.width * ffn.hidden;
  const auto body = [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t task = begin; task < end; ++task) {
      const EntryTile& tile = tiles[task / blocks];
      const int64_t first = task % blocks * kColumns;
      const int64_t last = std::min(first + kColumns, ffn.width);
      GateUp(ffn, tile, x, entries, first, last, packed, to);
    }
  };
  context.pool->ParallelFor(tasks, kMacsPerTask * tasks / (macs + 1) + 1, body);
}

// A task owns its columns of out and walks all entries in order: this fixes
// the order of every sum.
void DownAll(const Context& context,
             const Ffn& ffn,
             const ExpertEntries& entries,
             std::span<const EntryTile> tiles,
             const PackedRows& packed,
             int64_t rows,
             float* out) {
  const int64_t blocks = (ffn.hidden + kColumns - 1) / kColumns;
  const int64_t macs = entries.row.size() * ffn.width * ffn.hidden;
  const int64_t work = macs + rows * ffn.hidden + 1;
  const auto body = [&](int64_t begin, int64_t end) HWY_ATTR {
    const int64_t first = begin * kColumns;
    const int64_t last = std::min(end * kColumns, ffn.hidden);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = out + r * ffn.hidden;
      std::fill(row + first, row + last, 0.0f);
    }
    for (const EntryTile& tile : tiles) {
      Down(ffn, tile, packed, entries, first, last, out);
    }
  };
  context.pool->ParallelFor(blocks, kMacsPerTask * blocks / work + 1, body);
}

void FfnImpl(const Context& context,
             const Ffn& ffn,
             const ExpertEntries& entries,
             std::span<const EntryTile> tiles,
             const float* x,
             int64_t rows,
             float* out) {
  Workspace::Scope scope(context.workspace);
  const int64_t count = static_cast<int64_t>(entries.row.size());
  PackedRows packed{.form = FormOf(context, ffn.down)};
  packed.stride = PackedStride(packed.form, ffn.width);
  float* between = context.workspace->Floats(count * packed.stride).data();
  packed.data = between;
  const auto pack = [&](RowForm form) {
    const int64_t x_stride = PackedStride(form, ffn.hidden);
    float* to = context.workspace->Floats(rows * x_stride).data();
    const auto body = [&](int64_t begin, int64_t end) HWY_ATTR {
      for (int64_t r = begin; r < end; ++r) {
        PackWholeRow(form, x + r * ffn.hidden, ffn.hidden, to + r * x_stride);
      }
    };
    context.pool->ParallelFor(rows, kElementsPerTask / x_stride + 1, body);
    return PackedRows{to, x_stride, nullptr, form};
  };
  const RowForm form = FormOf(context, ffn.gate);
  const RowForm form_up = FormOf(context, ffn.up);
  Inputs inputs;
  inputs.gate = inputs.up = pack(form);
  if (form_up != form) inputs.up = pack(form_up);
  GateUpAll(context, ffn, entries, tiles, inputs, packed, between);
  DownAll(context, ffn, entries, tiles, packed, rows, out);
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels::fast {
namespace {

HWY_EXPORT(FfnImpl);

void RunFfn(const Context& context,
            const Ffn& ffn,
            const ExpertEntries& entries,
            std::span<const float> x,
            int64_t rows,
            std::span<float> out) {
  const int32_t count = static_cast<int32_t>(entries.slice.size());
  std::vector<EntryTile> tiles;
  for (int32_t e = 0; e < count; ++e) {
    if (tiles.empty() || tiles.back().slice != entries.slice[e] ||
        tiles.back().end - tiles.back().begin == kTileEntries) {
      tiles.push_back({entries.slice[e], e, e});
    }
    tiles.back().end = e + 1;
  }
  HWY_DYNAMIC_DISPATCH(FfnImpl)
  (context, ffn, entries, tiles, x.data(), rows, out.data());
}

}  // namespace

void Route(const Context& context,
           const WeightView& gate,
           std::span<const float> u,
           int64_t rows,
           int32_t top_k,
           std::span<int32_t> ids,
           std::span<float> weights) {
  Workspace::Scope scope(context.workspace);
  std::span<float> logits = context.workspace->Floats(rows * gate.rows);
  MatMul(WithFloats(context), u, rows, gate, logits);
  context.pool->ParallelFor(
      rows, 16 * 1024 / gate.rows + 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const auto row = logits.subspan(r * gate.rows, gate.rows);
          const auto chosen = ids.subspan(r * top_k, top_k);
          TopK(row, chosen);
          // Softmax over all, renormalised over the chosen, is softmax over
          // the chosen.
          float sum = 0;
          for (int32_t j = 0; j < top_k; ++j) {
            const float share = std::exp(row[chosen[j]] - row[chosen[0]]);
            sum += weights[r * top_k + j] = share;
          }
          for (int32_t j = 0; j < top_k; ++j) weights[r * top_k + j] /= sum;
        }
      });
}

void ExpertFfn(const Context& context,
               const ShardLayerWeights& weights,
               const ExpertEntries& entries,
               std::span<const float> x,
               int64_t rows,
               std::span<float> out) {
  Ffn ffn;
  ffn.hidden = weights.hidden;
  ffn.width = weights.width;
  ffn.gate = weights.gate;
  ffn.up = weights.up;
  ffn.down = weights.down;
  RunFfn(context, ffn, entries, x, rows, out);
}

// One expert that every row uses, weighted by its own router.
void SharedExpert(const Context& context,
                  const SharedExpertWeights& weights,
                  std::span<const float> u,
                  int64_t rows,
                  std::span<float> out) {
  Workspace::Scope scope(context.workspace);
  std::span<float> share = context.workspace->Floats(rows);
  std::span<int32_t> slice = context.workspace->Ints(rows);
  std::span<int32_t> row = context.workspace->Ints(rows);
  MatMul(WithFloats(context), u, rows, weights.router, share);
  for (float& s : share) s = 1.0f / (1.0f + std::exp(-s));
  std::fill(slice.begin(), slice.end(), 0);
  std::iota(row.begin(), row.end(), 0);
  Ffn ffn;
  ffn.hidden = weights.gate.cols;
  ffn.width = weights.gate.rows;
  ffn.gate = weights.gate;
  ffn.up = weights.up;
  ffn.down = weights.down;
  RunFfn(context, ffn, {slice, row, share}, u, rows, out);
}

}  // namespace conclave::kernels::fast
#endif  // HWY_ONCE
