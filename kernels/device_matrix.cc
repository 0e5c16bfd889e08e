// SPDX-License-Identifier: Apache-2.0
// What a device matrix is made of, whatever device it is for.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/dtype.h"
#include "common/status_macros.h"
#include "kernels/matrix_shape.h"

namespace conclave::kernels {
namespace {

constexpr int32_t kFp8Cols = 128;  // of a scale

absl::StatusOr<DeviceFormat> FormatOf(const WeightLayout& layout) {
  const bool f16 = layout.scale_dtype == DType::kF16;
  switch (layout.dtype) {
    case DType::kBF16:
      return DeviceFormat::kBf16;
    case DType::kF8E4M3:
      if (layout.group % kMatrixTileRows != 0) break;
      return DeviceFormat::kFp8;
    case DType::kU32:
      if (layout.group % 32 != 0) break;
      if (f16 && layout.bits == 4 && !layout.biases)
        return DeviceFormat::kGptq4;
      if (f16) break;
      return layout.bits <= 4 ? DeviceFormat::kAffine4 : DeviceFormat::kAffine8;
    default:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("weights of ",
                   std::string(Name(layout.dtype)),
                   layout.dtype == DType::kU32
                       ? absl::StrCat(" (",
                                      layout.bits,
                                      " bits, scales in ",
                                      std::string(Name(layout.scale_dtype)),
                                      ")")
                       : "",
                   " in groups of ",
                   layout.group,
                   " have no form on the GPU; use --backend cpu"));
}

uint64_t UnitBytesOf(DeviceFormat format) {
  constexpr uint64_t kCodes = uint64_t{kMatrixTileRows} * kMatrixUnitCols;
  switch (format) {
    case DeviceFormat::kBf16:
      return kCodes * 2;
    case DeviceFormat::kAffine4:
    case DeviceFormat::kGptq4:
      return kCodes / 2;
    default:
      return kCodes;
  }
}

// Affine codes in bf16 scales can become wider codes in smaller groups.
bool Widens(DeviceFormat format) {
  return format == DeviceFormat::kAffine4 || format == DeviceFormat::kAffine8;
}

uint64_t DataBytes(const DeviceMatrix& m) {
  return UnitBytesOf(m.format) * m.units * m.tiles * m.stack;
}

uint64_t ScaleBytes(const DeviceMatrix& m) {
  if (m.format == DeviceFormat::kBf16) return 0;
  const uint64_t groups = (m.units * kMatrixUnitCols + m.group - 1) / m.group;
  const uint64_t lines = groups * m.tiles * m.stack;
  if (m.format == DeviceFormat::kFp8) return lines * sizeof(uint16_t);
  const uint64_t numbers = m.format == DeviceFormat::kGptq4 ? 1 : 2;
  return lines * kMatrixTileRows * sizeof(uint16_t) * numbers;
}

// Everything but the memory.
absl::StatusOr<DeviceMatrix> Shape(const MatrixPlan& plan) {
  if (plan.parts.empty()) {
    return absl::InvalidArgumentError("a matrix of no parts");
  }
  const WeightLayout& first = plan.parts[0];
  DeviceMatrix out;
  ASSIGN_OR_RETURN(out.format, FormatOf(first));
  out.group = first.dtype == DType::kU32      ? first.group
              : first.dtype == DType::kF8E4M3 ? kFp8Cols
                                              : kMatrixUnitCols;
  for (const WeightLayout& part : plan.parts) {
    ASSIGN_OR_RETURN(const DeviceFormat format, FormatOf(part));
    if (part.cols != first.cols ||
        (plan.interleaved && part.rows != first.rows) ||
        (!CanShare(first, part) && !(Widens(format) && Widens(out.format)))) {
      return absl::InvalidArgumentError(
          "its parts are stored in different ways");
    }
    if (format == DeviceFormat::kAffine8) out.format = format;
    if (part.dtype == DType::kU32) out.group = std::min(out.group, part.group);
    out.tiles += TilesOf(part.rows);
    out.out_cols += static_cast<int32_t>(part.rows);
  }
  // Scales of more than two units come again and again.
  constexpr int32_t kGroupMax = 2 * kMatrixUnitCols;
  out.group = std::min(out.group, kGroupMax);
  out.cols = static_cast<int32_t>(first.cols);
  out.units = (out.cols + kMatrixUnitCols - 1) / kMatrixUnitCols;
  out.stack = plan.stack;
  if (plan.row_width > 0) out.out_cols = plan.row_width;
  out.data_bytes = DataBytes(out);
  out.scale_bytes = ScaleBytes(out);
  return out;
}

}  // namespace

bool CanShare(const WeightLayout& a, const WeightLayout& b) {
  const auto format_a = FormatOf(a);
  const auto format_b = FormatOf(b);
  return format_a.ok() && format_b.ok() && *format_a == *format_b &&
         a.cols == b.cols && a.group == b.group;
}

uint64_t MatrixBytes(const MatrixPlan& plan) {
  const auto shape = Shape(plan);
  return shape.ok() ? shape->bytes() : 0;
}

absl::StatusOr<DeviceMatrix> ShapeOf(const MatrixPlan& plan,
                                     const std::string& what) {
  absl::StatusOr<DeviceMatrix> shape = Shape(plan);
  if (shape.ok()) return shape;
  return absl::Status(shape.status().code(),
                      absl::StrCat(what, ": ", shape.status().message()));
}

std::vector<TilePlace> PlacesOf(const MatrixPlan& plan, const DeviceMatrix& m) {
  std::vector<TilePlace> out;
  int32_t column = plan.first_column;
  for (const WeightLayout& part : plan.parts) {
    const auto rows = static_cast<int32_t>(part.rows);
    for (int32_t row = 0; row < rows; row += kMatrixTileRows) {
      out.push_back({column + row, std::min(rows - row, kMatrixTileRows)});
    }
    column += rows;
  }
  if (!plan.interleaved) return out;
  std::vector<TilePlace> mixed;
  for (int32_t i = 0; i < m.tiles; ++i) {
    mixed.push_back(out[i % 2 * (m.tiles / 2) + i / 2]);
  }
  return mixed;
}

}  // namespace conclave::kernels
