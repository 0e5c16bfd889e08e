// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/dense_twins.h"
#include "kernels/device_product.h"
#include "kernels/host/rows.h"
#include "kernels/host/stream.h"
#include "kernels/matrix_shape.h"

namespace conclave::kernels {
namespace {

using host::RowArray;
using host::StreamOf;

constexpr int32_t kGroupRows = 8;

// What a recorded step needs of a matrix: the memory stays where it is.
struct Matrix {
  explicit Matrix(const DeviceMatrix& m)
      : data(m.data.as<float>()),
        places(m.places.as<TilePlace>()),
        tiles(m.tiles),
        cols(m.cols),
        stride(m.units * kMatrixUnitCols),
        out_cols(m.out_cols) {}

  // Rows of one of the stack.
  WeightView View(int64_t index) const {
    const int64_t rows = int64_t{tiles} * kMatrixTileRows;
    return {.data = data + index * rows * cols,
            .dtype = DType::kF32,
            .rows = rows,
            .cols = cols,
            .row_stride = cols};
  }

  const float* data;
  const TilePlace* places;
  int32_t tiles, cols, stride, out_cols;
};

// [rows, tiles * 16] of one of the stack.
std::vector<float> Products(const Context& context,
                            const Matrix& m,
                            int64_t index,
                            const std::vector<float>& x,
                            int64_t rows) {
  const Workspace::Scope scope(context.workspace);
  std::vector<float> out(static_cast<size_t>(rows) * m.tiles * kMatrixTileRows);
  fast::MatMul(context, x, rows, m.View(index), out);
  return out;
}

// Puts the tiles' rows where they belong: to(column, value).
template <typename To>
void Scatter(const Matrix& m, const float* products, const To& to) {
  for (int32_t tile = 0; tile < m.tiles; ++tile) {
    const TilePlace& place = m.places[tile];
    for (int32_t i = 0; i < place.count; ++i) {
      to(place.first + i, products[tile * kMatrixTileRows + i]);
    }
  }
}

float Silu(float x) { return x / (1.0f + std::exp(-x)); }

// The pairs of one expert, all at once.
struct Group {
  int32_t expert, first, count;
};

void GateUp(const Context& context,
            const Matrix& m,
            int64_t index,
            const Group& group,
            const int32_t* row,
            const RowArray& x,
            const RowArray& hidden) {
  std::vector<float> in;
  for (int32_t p = group.first; p < group.first + group.count; ++p) {
    for (int32_t c = 0; c < m.cols; ++c) in.push_back(x.Get(row[p], c));
  }
  const auto out = Products(context, m, index, in, group.count);
  for (int32_t i = 0; i < group.count; ++i) {
    const float* line = &out[size_t(i) * m.tiles * kMatrixTileRows];
    std::vector<float> values(static_cast<size_t>(m.tiles / 2) *
                              kMatrixTileRows);
    // Tiles of gate and up in turn.
    for (int32_t tile = 0; tile < m.tiles; tile += 2) {
      for (int32_t r = 0; r < kMatrixTileRows; ++r) {
        const float* gate = line + tile * kMatrixTileRows + r;
        values[tile / 2 * kMatrixTileRows + r] =
            Silu(*gate) * gate[kMatrixTileRows];
      }
    }
    hidden.SetRow(group.first + i, values);
  }
}

void Down(const Context& context,
          const Matrix& m,
          int64_t index,
          const Group& group,
          const RowArray& hidden,
          float* y) {
  std::vector<float> in;
  for (int32_t p = group.first; p < group.first + group.count; ++p) {
    for (int32_t c = 0; c < m.cols; ++c) in.push_back(hidden.Get(p, c));
  }
  const auto out = Products(context, m, index, in, group.count);
  for (int32_t i = 0; i < group.count; ++i) {
    float* to = y + int64_t{group.first + i} * m.out_cols;
    Scatter(m,
            &out[size_t(i) * m.tiles * kMatrixTileRows],
            [&](int32_t column, float value) { to[column] = value; });
  }
}

}  // namespace

int32_t DevicePlanes(const DeviceQueue&, const DeviceMatrix&, int32_t, bool) {
  return 1;
}

int32_t GroupRowsFor(int64_t, int32_t) { return kGroupRows; }

absl::Status DeviceProduct(DeviceQueue* queue,
                           const DeviceMatrix& matrix,
                           const DeviceRows& x,
                           const void* low,
                           int32_t rows,
                           int32_t planes,
                           float* out) {
  if (planes != 1) return absl::InvalidArgumentError("one plane on the host");
  const Context& context = StreamOf(queue)->context;
  StreamOf(queue)->Do([=, m = Matrix(matrix)] {
    const RowArray from(x, m.stride);
    const RowArray lost({.data = const_cast<void*>(low)}, m.stride);
    std::vector<float> in;
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t c = 0; c < m.cols; ++c) {
        in.push_back(from.Get(r, c) + (low == nullptr ? 0.0f : lost.Get(r, c)));
      }
    }
    const auto products = Products(context, m, 0, in, rows);
    for (int32_t r = 0; r < rows; ++r) {
      float* to = out + int64_t{r} * m.out_cols;
      Scatter(m,
              &products[size_t(r) * m.tiles * kMatrixTileRows],
              [&](int32_t column, float value) { to[column] = value; });
    }
  });
  return absl::OkStatus();
}

absl::Status DeviceExperts(DeviceQueue* queue,
                           const DeviceExpertStack& stack,
                           const DeviceEntries& entries,
                           const DeviceRows& x,
                           const DeviceRows& hidden,
                           float* y) {
  const Context& context = StreamOf(queue)->context;
  const int32_t first = stack.first, count = stack.gate_up.stack;
  StreamOf(queue)->Do(
      [=, gate_up = Matrix(stack.gate_up), down = Matrix(stack.down)] {
        const RowArray rows(x, gate_up.stride);
        const RowArray middle(hidden, down.stride);
        for (int32_t g = 0; g < *entries.group_count; ++g) {
          const int32_t* words = entries.groups + 4 * int64_t{g};
          const Group group{words[0], words[1], words[2]};
          if (group.expert < first || group.expert >= first + count) continue;
          const int32_t index = group.expert - first;
          GateUp(context, gate_up, index, group, entries.row, rows, middle);
          Down(context, down, index, group, middle, y);
        }
      });
  return absl::OkStatus();
}

}  // namespace conclave::kernels
