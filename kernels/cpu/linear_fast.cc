// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/dense_twins.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_fast.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per target.
#include "kernels/cpu/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kMacsPerTask = 64 * 1024;
// Elements likewise, where memory is the limit.
constexpr int64_t kElementsPerTask = 32 * 1024;
constexpr int64_t kOutBlock = 32;
// Rows of x that stay in the second-level cache while weights stream by.
constexpr int64_t kRowBlockBytes = 256 * 1024;

int64_t RowBlock(int64_t cols) {
  const int64_t rows = kRowBlockBytes / (cols * 4);
  return std::clamp<int64_t>(rows / 4 * 4, 4, 64);
}

void MatMulImpl(const Context& context,
                const float* x,
                int64_t rows,
                const WeightView& w,
                float* out) {
  Workspace::Scope scope(context.workspace);
  const RowForm form = FormOf(context, w);
  const int64_t stride = PackedStride(form, w.cols);
  float* packed = context.workspace->Floats(rows * stride).data();
  context.pool->ParallelFor(
      rows,
      kElementsPerTask / stride + 1,
      [&](int64_t begin, int64_t end) HWY_ATTR {
        for (int64_t r = begin; r < end; ++r) {
          PackWholeRow(form, x + r * w.cols, w.cols, packed + r * stride);
        }
      });
  const int64_t row_block = RowBlock(w.cols);
  const int64_t row_blocks = (rows + row_block - 1) / row_block;
  const int64_t out_blocks = (w.rows + kOutBlock - 1) / kOutBlock;
  const int64_t macs = std::min(rows, row_block) * kOutBlock * w.cols;
  context.pool->ParallelFor(
      row_blocks * out_blocks,
      kMacsPerTask / macs + 1,
      [&](int64_t begin, int64_t end) HWY_ATTR {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task / out_blocks * row_block;
          const int64_t first = task % out_blocks * kOutBlock;
          float* to = out + row * w.rows;
          DotBlock({packed + row * stride, stride, nullptr, form},
                   std::min(row_block, rows - row),
                   w,
                   first,
                   std::min(first + kOutBlock, w.rows),
                   [&](int64_t r, int64_t o, V4 v, int64_t count)
                       HWY_ATTR { StoreFour(v, count, to + r * w.rows + o); });
        }
      });
}

HWY_INLINE V LoadPart(const float* from, int64_t count) {
  float all[kLanes] = {};
  std::memcpy(all, from, count * sizeof(float));
  return hn::LoadU(F32(), all);
}

HWY_INLINE float SumOfSquares(const float* x, int64_t n) {
  const F32 df;
  V s0 = hn::Zero(df), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const V x0 = hn::LoadU(df, x + i);
    const V x1 = hn::LoadU(df, x + i + kLanes);
    const V x2 = hn::LoadU(df, x + i + 2 * kLanes);
    const V x3 = hn::LoadU(df, x + i + 3 * kLanes);
    s0 = hn::MulAdd(x0, x0, s0);
    s1 = hn::MulAdd(x1, x1, s1);
    s2 = hn::MulAdd(x2, x2, s2);
    s3 = hn::MulAdd(x3, x3, s3);
  }
  for (; i < n; i += kLanes) {
    const V x0 = LoadPart(x + i, std::min(kLanes, n - i));
    s0 = hn::MulAdd(x0, x0, s0);
  }
  const V4 sums = SumFour(s0, s1, s2, s3);
  float four[4];
  hn::StoreU(sums, F32x4(), four);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

void RmsNormRow(
    const float* x, const float* w, int64_t cols, float eps, float* out) {
  const F32 df;
  const float mean = SumOfSquares(x, cols) / static_cast<float>(cols);
  const V scale = hn::Set(df, 1.0f / std::sqrt(mean + eps));
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) {
    const V scaled = hn::Mul(hn::LoadU(df, x + i), scale);
    hn::StoreU(hn::Mul(scaled, hn::LoadU(df, w + i)), df, out + i);
  }
  for (; i < cols; ++i) out[i] = x[i] * hn::GetLane(scale) * w[i];
}

void RmsNormImpl(const Context& context,
                 const float* x,
                 int64_t rows,
                 std::span<const float> w,
                 float eps,
                 float* out) {
  const int64_t cols = static_cast<int64_t>(w.size());
  if (cols == 0) return;
  context.pool->ParallelFor(
      rows,
      kElementsPerTask / cols + 1,
      [&](int64_t begin, int64_t end) HWY_ATTR {
        for (int64_t r = begin; r < end; ++r) {
          RmsNormRow(x + r * cols, w.data(), cols, eps, out + r * cols);
        }
      });
}

void EmbedRow(const uint16_t* from, int64_t cols, float* to) {
  const F32 df;
  const hn::Rebind<uint16_t, F32> du16;
  const hn::RebindToUnsigned<F32> du;
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) {
    const auto bits = hn::PromoteTo(du, hn::LoadU(du16, from + i));
    hn::StoreU(hn::BitCast(df, hn::ShiftLeft<16>(bits)), df, to + i);
  }
  for (; i < cols; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof(bits));
  }
}

void EmbedImpl(const WeightView& table,
               std::span<const int32_t> ids,
               float* out) {
  for (size_t r = 0; r < ids.size(); ++r) {
    const int64_t at = ids[r] * table.row_stride;
    float* to = out + static_cast<int64_t>(r) * table.cols;
    if (table.packing != Packing::kPlain) {
      DecodeRow(table, ids[r], {to, static_cast<size_t>(table.cols)});
    } else if (table.dtype == DType::kBF16) {
      EmbedRow(static_cast<const uint16_t*>(table.data) + at, table.cols, to);
    } else {
      std::memcpy(to,
                  static_cast<const float*>(table.data) + at,
                  table.cols * sizeof(float));
    }
  }
}

void AddToImpl(const Context& context,
               std::span<const float> y,
               std::span<float> x) {
  context.pool->ParallelFor(static_cast<int64_t>(x.size()),
                            kElementsPerTask,
                            [&](int64_t begin, int64_t end) HWY_ATTR {
                              const F32 df;
                              int64_t i = begin;
                              for (; i + kLanes <= end; i += kLanes) {
                                const V sum = hn::Add(hn::LoadU(df, &x[i]),
                                                      hn::LoadU(df, &y[i]));
                                hn::StoreU(sum, df, &x[i]);
                              }
                              for (; i < end; ++i) x[i] += y[i];
                            });
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels::fast {

HWY_EXPORT(MatMulImpl);
HWY_EXPORT(RmsNormImpl);
HWY_EXPORT(EmbedImpl);
HWY_EXPORT(AddToImpl);

void MatMul(const Context& context,
            std::span<const float> x,
            int64_t rows,
            const WeightView& w,
            std::span<float> out) {
  if (out.empty()) return;
  HWY_DYNAMIC_DISPATCH(MatMulImpl)(context, x.data(), rows, w, out.data());
}

void Embed(const Context&,
           const WeightView& table,
           std::span<const int32_t> ids,
           std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(EmbedImpl)(table, ids, out.data());
}

void RmsNorm(const Context& context,
             std::span<const float> x,
             int64_t rows,
             std::span<const float> w,
             float eps,
             std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(RmsNormImpl)
  (context, x.data(), rows, w, eps, out.data());
}

void AddTo(const Context& context,
           std::span<const float> y,
           std::span<float> x) {
  HWY_DYNAMIC_DISPATCH(AddToImpl)(context, y, x);
}

}  // namespace conclave::kernels::fast
#endif  // HWY_ONCE
