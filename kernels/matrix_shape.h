// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device_matrix.h"

namespace conclave::kernels {

// Of a tile.
inline constexpr int32_t kMatrixTileRows = 16;
inline constexpr int32_t kMatrixUnitCols = 64;

// Where a tile's rows go in an output row, and how many there are.
struct TilePlace {
  int32_t first = 0;
  int32_t count = 0;
};

// A matrix of such a plan without its memory; data_bytes and scale_bytes say
// how much that takes. Errors name `what`.
absl::StatusOr<DeviceMatrix> ShapeOf(const MatrixPlan& plan,
                                     const std::string& what);
// [matrix.tiles]
std::vector<TilePlace> PlacesOf(const MatrixPlan& plan,
                                const DeviceMatrix& matrix);

}  // namespace conclave::kernels
