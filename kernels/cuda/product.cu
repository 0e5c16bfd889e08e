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

// Four pairs of columns become a piece of 16 bytes.
__global__ void OrderRows(const uint32_t* from, uint4* to, int64_t pieces) {
  cuda::WaitForKernelBefore();
  cuda::LetNextKernelBegin();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= pieces) return;
  constexpr int kPieces = cuda::kRowBytes / 16;  // of a unit
  const int piece = static_cast<int>(i % kPieces);
  // Pair t: columns 32 (s / 2) + 8 t + 4 (s % 2) + 2 (piece % 2), s = piece
  // / 2.
  const int step = piece / 2;
  const uint32_t* pair = from + i / kPieces * (cuda::kUnitCols / 2) +
                         16 * (step / 2) + 2 * (step % 2) + piece % 2;
  to[i] = {pair[0], pair[4], pair[8], pair[12]};
}

// Whether rows go to the warpgroup products; then they are put into order.
absl::StatusOr<bool> PutInOrder(DeviceQueue* queue,
                                const DeviceRows& x,
                                int64_t rows,
                                int32_t units) {
  constexpr int32_t kHopper = 9;
  if (x.wide == nullptr || queue->compute_major() != kHopper) return false;
  constexpr int64_t kThreads = 256;
  const int64_t pieces = rows * units * (cuda::kRowBytes / 16);
  RETURN_IF_ERROR(
      cuda::Launch(queue,
                   "ordering rows",
                   OrderRows,
                   {.blocks = dim3((pieces + kThreads - 1) / kThreads),
                    .threads = dim3(kThreads)},
                   static_cast<const uint32_t*>(x.data),
                   static_cast<uint4*>(x.wide),
                   pieces));
  return true;
}

}  // namespace

int32_t DevicePlanes(const DeviceQueue& queue,
                     const DeviceMatrix& matrix,
                     int32_t rows,
                     bool bf16) {
  if (!bf16 || rows > kNarrowMax) return 1;
  constexpr int32_t kUnits = 8;  // of a part at least
  const int32_t resident = rows <= 8    ? cuda::kSmallBlocks
                           : rows <= 16 ? cuda::kBlocksOf16Rows
                                        : cuda::kBlocksOf32Rows;
  const int32_t many = resident == cuda::kBlocksOf16Rows ? 4 : 2;
  const int32_t tiles = matrix.tiles < cuda::kFewTiles ? 1 : many;
  return cuda::PartsOf(queue.multiprocessors(),
                       resident,
                       cuda::DivideUp(matrix.tiles, tiles),
                       std::clamp(matrix.units / kUnits, 1, kPlanesMax));
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
  if (x.bf16 && group_rows == cuda::kWideRows) {
    ASSIGN_OR_RETURN(args.wide, PutInOrder(queue, x, rows, matrix.units));
    if (args.wide) args.x = x.wide;
  }
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
  args.all_groups = entries.all_groups;
  args.rows = entries.rows;
  args.pair_row = entries.row;
  if (x.bf16 && entries.group_rows == cuda::kWideRows) {
    ASSIGN_OR_RETURN(args.wide,
                     PutInOrder(queue, x, entries.rows, gate_up.units));
    // Hidden rows are written in order.
    if (args.wide) args.x = x.wide;
  }
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

}  // namespace conclave::kernels
