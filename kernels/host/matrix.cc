// SPDX-License-Identifier: Apache-2.0
// Matrices as float32, [stack, tiles * 16, cols], whatever their format: what
// `bytes` tells is what a GPU would hold.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/bf16.h"
#include "common/status_macros.h"
#include "kernels/device_matrix.h"
#include "kernels/matrix_shape.h"

namespace conclave::kernels {
namespace {

// Number `i` of a seed: 64 random bits.
uint64_t Bits(uint64_t seed, uint64_t i) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Uniform in [-1, 1).
float Uniform(uint64_t seed, uint64_t i) {
  return static_cast<float>(Bits(seed, i) >> 40) * 0x1p-23f - 1.0f;
}

}  // namespace

absl::StatusOr<DeviceMatrix> MakeMatrix(DeviceQueue* queue,
                                        const MatrixPlan& plan,
                                        const std::string& what) {
  ASSIGN_OR_RETURN(DeviceMatrix out, ShapeOf(plan, what));
  const size_t floats = static_cast<size_t>(out.stack) * out.tiles *
                        kMatrixTileRows * static_cast<size_t>(out.cols);
  ASSIGN_OR_RETURN(out.data, queue->Allocate(floats * sizeof(float), what));
  RETURN_IF_ERROR(queue->Fill(out.data, 0));
  const std::vector<TilePlace> places = PlacesOf(plan, out);
  ASSIGN_OR_RETURN(out.places,
                   queue->Allocate(places.size() * sizeof(TilePlace), what));
  RETURN_IF_ERROR(
      queue->Upload(places.data(), out.places.bytes(), out.places.as<void>()));
  return out;
}

absl::Status MatrixLoader::Load(const WeightView& weight,
                                const MatrixPlan& plan,
                                int32_t index,
                                int32_t part,
                                DeviceMatrix* to) {
  int64_t first = part;
  if (!plan.interleaved) {
    first = 0;
    for (int32_t i = 0; i < part; ++i) first += TilesOf(plan.parts[i].rows);
  }
  const int64_t step = plan.interleaved ? 2 : 1;
  float* base = to->data.as<float>() + int64_t{index} * to->tiles *
                                           kMatrixTileRows * int64_t{to->cols};
  for (int64_t row = 0; row < weight.rows; ++row) {
    const int64_t line =
        (first + row / kMatrixTileRows * step) * kMatrixTileRows +
        row % kMatrixTileRows;
    DecodeRow(weight, row, {base + line * to->cols, size_t(to->cols)});
  }
  return absl::OkStatus();
}

absl::Status FillMadeUp(DeviceQueue*,
                        uint64_t seed,
                        double gain,
                        DeviceMatrix* to) {
  constexpr double kOfUnit = 0.577;  // standard deviation in [-1, 1)
  const auto scale = static_cast<float>(
      gain / kOfUnit / std::sqrt(static_cast<double>(to->cols)));
  auto* data = to->data.as<float>();
  for (size_t i = 0; i < to->data.bytes() / sizeof(float); ++i) {
    data[i] = scale * Uniform(seed, i);
  }
  return absl::OkStatus();
}

// Plain tables get numbers of [-1, 1]; packed ones random codes and scales that
// make about such numbers of them.
absl::Status FillMadeUpTable(DeviceQueue*,
                             uint64_t seed,
                             const WeightView& table) {
  auto* data = static_cast<uint8_t*>(const_cast<void*>(table.data));
  if (table.packing == Packing::kPlain) {
    for (int64_t i = 0; i < table.rows * table.row_stride; ++i) {
      const float value = Uniform(seed, i);
      const uint16_t half = ToBf16(value);
      const void* from = table.dtype == DType::kF32
                             ? static_cast<const void*>(&value)
                             : static_cast<const void*>(&half);
      std::memcpy(data + i * SizeOf(table.dtype), from, SizeOf(table.dtype));
    }
    return absl::OkStatus();
  }
  // Without the sign and the top of the exponent FP8 codes are small numbers.
  const int mask = table.packing == Packing::kFp8Block ? 0xbf : 0xff;
  for (int64_t i = 0; i < table.rows * table.row_stride; ++i) {
    data[i] = static_cast<uint8_t>(Bits(seed, i) & mask);
  }
  const auto fill = [&](const void* to, float value) {
    if (to == nullptr) return;
    std::fill_n(static_cast<uint16_t*>(const_cast<void*>(to)),
                table.rows * table.scale_stride,
                ToBf16(value));
  };
  fill(table.scales, 2.0f / static_cast<float>((1 << table.bits) - 1));
  fill(table.biases, -1.0f);
  return absl::OkStatus();
}

}  // namespace conclave::kernels
