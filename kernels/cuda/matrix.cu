// SPDX-License-Identifier: Apache-2.0
// What a device matrix is made of, and its memory.
#include <vector>

#include "common/status_macros.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_matrix.h"
#include "kernels/matrix_shape.h"

namespace conclave::kernels {
namespace cuda {

MatrixArgs ArgsOf(const DeviceMatrix& m) {
  constexpr int kHalf = kUnitCols / 2;
  return {.data = m.data.as<uint8_t>(),
          .scales = m.scales.as<uint8_t>(),
          .places = m.places.as<int2>(),
          .tiles = m.tiles,
          .units = m.units,
          .out_cols = m.out_cols,
          .group_shift = m.group >= 4 * kHalf   ? 2
                         : m.group >= 2 * kHalf ? 1
                                                : 0,
          .scale_groups = (m.units * kUnitCols + m.group - 1) / m.group,
          .data_stride = m.data_bytes / m.stack,
          .scale_stride = m.scale_bytes / m.stack};
}

}  // namespace cuda

namespace {

constexpr uint64_t kTilesPast = 3;

}  // namespace

absl::StatusOr<DeviceMatrix> MakeMatrix(DeviceQueue* queue,
                                        const MatrixPlan& plan,
                                        const std::string& what) {
  ASSIGN_OR_RETURN(DeviceMatrix out, ShapeOf(plan, what));
  // Kernels read a few tiles at a time, past the last one too.
  const uint64_t lines = static_cast<uint64_t>(out.tiles) * out.stack;
  ASSIGN_OR_RETURN(
      out.data,
      queue->Allocate(out.data_bytes + kTilesPast * out.data_bytes / lines,
                      what));
  ASSIGN_OR_RETURN(
      out.scales,
      queue->Allocate(out.scale_bytes + kTilesPast * out.scale_bytes / lines,
                      what));
  const std::vector<TilePlace> places = PlacesOf(plan, out);
  ASSIGN_OR_RETURN(out.places,
                   queue->Allocate(places.size() * sizeof(TilePlace), what));
  RETURN_IF_ERROR(
      queue->Upload(places.data(), out.places.bytes(), out.places.as<void>()));
  return out;
}

}  // namespace conclave::kernels
