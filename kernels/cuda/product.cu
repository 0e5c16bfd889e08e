// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "common/status_macros.h"
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/product_args.cuh"
#include "kernels/cuda/products.cuh"
#include "kernels/cuda/wide.cuh"

namespace conclave::kernels {
namespace {

using cuda::ProductArgs;
using cuda::Use;

absl::Status Run(DeviceQueue* queue,
                 DeviceFormat format,
                 Use use,
                 const ProductArgs& args,
                 bool bf16,
                 int32_t group_rows,
                 int32_t groups,
                 int32_t planes) {
  switch (format) {
    case DeviceFormat::kBf16:
      return cuda::Products<DeviceFormat::kBf16>::Run(
          queue, use, args, bf16, group_rows, groups, planes);
    case DeviceFormat::kAffine4:
      return cuda::Products<DeviceFormat::kAffine4>::Run(
          queue, use, args, bf16, group_rows, groups, planes);
    case DeviceFormat::kAffine8:
      return cuda::Products<DeviceFormat::kAffine8>::Run(
          queue, use, args, bf16, group_rows, groups, planes);
    case DeviceFormat::kGptq4:
      return cuda::Products<DeviceFormat::kGptq4>::Run(
          queue, use, args, bf16, group_rows, groups, planes);
    case DeviceFormat::kFp8:
      break;
  }
  return cuda::Products<DeviceFormat::kFp8>::Run(
      queue, use, args, bf16, group_rows, groups, planes);
}

// More rows take the wide form.
constexpr int32_t kNarrowMax = 64;

int32_t Padded(const DeviceMatrix& matrix) {
  return matrix.units * cuda::kUnitCols;
}

}  // namespace

int32_t DevicePlanes(const DeviceQueue& queue,
                     const DeviceMatrix& matrix,
                     int32_t rows,
                     bool bf16) {
  if (!bf16 || rows > kNarrowMax) return 1;
  // As many blocks as fill the device some times over, each with a few units.
  constexpr int32_t kTiles = 4, kUnits = 16;
  const int32_t tiles = matrix.tiles < cuda::kFewTiles ? 1 : kTiles;
  const int32_t blocks = (matrix.tiles + tiles - 1) / tiles;
  const int32_t wanted =
      (5 * queue.multiprocessors() / 2 + blocks - 1) / blocks;
  return std::clamp(std::min(wanted, matrix.units / kUnits), 1, kPlanesMax);
}

absl::Status DeviceProduct(DeviceQueue* queue,
                           const DeviceMatrix& matrix,
                           const DeviceRows& x,
                           const void* low,
                           int32_t rows,
                           int32_t planes,
                           float* out) {
  // With `low` rows never take the wide form, which has no use for it.
  int32_t group_rows = rows <= 8 ? 8 : rows <= 16 ? 16 : 32;
  if (rows > kNarrowMax && low == nullptr) group_rows = cuda::kWideRows;
  if (!x.bf16) group_rows = cuda::kExactRows;
  ProductArgs args = {};
  args.m = cuda::ArgsOf(matrix);
  args.x = x.data;
  args.low = low;
  args.out = out;
  args.x_stride = Padded(matrix);
  args.out_stride = matrix.out_cols;
  args.rows = rows;
  args.plane_stride = int64_t{rows} * matrix.out_cols;
  return Run(queue,
             matrix.format,
             Use::kDense,
             args,
             x.bf16,
             group_rows,
             (rows + group_rows - 1) / group_rows,
             planes);
}

absl::Status DeviceExperts(DeviceQueue* queue,
                           const DeviceExpertStack& stack,
                           const DeviceEntries& entries,
                           const DeviceRows& x,
                           const DeviceRows& hidden,
                           float* y) {
  const DeviceMatrix& gate_up = stack.gate_up;
  const DeviceMatrix& down = stack.down;
  ProductArgs args = {};
  args.m = cuda::ArgsOf(gate_up);
  args.x = x.data;
  args.out = hidden.data;
  args.out_bf16 = hidden.bf16;
  args.x_stride = Padded(gate_up);
  args.out_stride = Padded(down);
  args.expert_first = stack.first;
  args.experts = gate_up.stack;
  args.groups = reinterpret_cast<const int4*>(entries.groups);
  args.group_count = entries.group_count;
  args.pair_row = entries.row;
  RETURN_IF_ERROR(Run(queue,
                      gate_up.format,
                      Use::kGateUp,
                      args,
                      x.bf16,
                      entries.group_rows,
                      entries.groups_max,
                      1));
  args.m = cuda::ArgsOf(down);
  args.x = hidden.data;
  args.out = y;
  args.x_stride = Padded(down);
  args.out_stride = down.out_cols;
  return Run(queue,
             down.format,
             Use::kDown,
             args,
             hidden.bf16,
             entries.group_rows,
             entries.groups_max,
             1);
}

int32_t GroupRowsFor(int64_t pairs, int32_t experts) {
  // Pairs of an expert, were they spread evenly.
  const int64_t each = pairs / experts;
  if (each <= 4) return 8;
  if (each <= 12) return 16;
  return each <= 48 ? 32 : cuda::kWideRows;
}

int32_t GroupsMax(int64_t pairs, int32_t experts, int32_t group_rows) {
  // Every expert may leave one group that is not full.
  return static_cast<int32_t>(
      std::min(pairs, pairs / group_rows + std::min<int64_t>(experts, pairs)));
}

}  // namespace conclave::kernels
