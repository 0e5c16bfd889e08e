// SPDX-License-Identifier: Apache-2.0
// From rows as checkpoints have them to the tiles of a device matrix.
#include <algorithm>

#include "common/dtype.h"
#include "common/status_macros.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_matrix.h"

namespace conclave::kernels {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFp8Cols = 128;  // of a scale

// A linear as it came: rows in device memory.
struct Raw {
  const uint8_t* data;
  const uint16_t* scales;
  const uint16_t* biases;
  int64_t row_stride;    // bytes
  int64_t scale_stride;  // elements
  int32_t rows;
  int32_t cols;
  int32_t bits;
  int32_t group;      // affine: columns; FP8: rows
  int32_t first_row;  // FP8
};

// Where its tiles go.
struct Target {
  uint8_t* data;
  uint8_t* scales;
  int32_t first_tile;
  int32_t tile_step;
  int32_t units;
  int32_t group;
  bool scales_only;  // no biases
};

__device__ uint32_t CodeAt(const Raw& w, int64_t row, int64_t col) {
  const uint8_t* line = w.data + row * w.row_stride;
  if (w.bits == 8) return line[col];
  uint32_t code = 0;
  for (int b = 0; b < w.bits; ++b) {
    const int64_t bit = col * w.bits + b;
    code |= static_cast<uint32_t>(line[bit / 8] >> (bit % 8) & 1) << b;
  }
  return code;
}

// One word of 4 bytes: `lane`, `step` and `i` as device_matrix.h has them.
template <DeviceFormat F>
__device__ uint32_t
WordAt(const Raw& w, int row0, int col0, int lane, int piece, int i) {
  const int g = lane / 4;
  const int t = lane % 4;
  const auto element = [&](int step, int fragment, int which) -> uint32_t {
    const int row = row0 + g + 8 * (fragment % 2);
    const int col = col0 + 32 * (step / 2) + 8 * t + 4 * (step % 2) +
                    2 * (fragment / 2) + which;
    if (row >= w.rows || col >= w.cols) return 0;
    if constexpr (F == DeviceFormat::kBf16) {
      return reinterpret_cast<const uint16_t*>(w.data +
                                               row * w.row_stride)[col];
    } else if constexpr (F == DeviceFormat::kFp8) {
      return w.data[row * w.row_stride + col];
    } else {
      return CodeAt(w, row, col);
    }
  };
  if constexpr (F == DeviceFormat::kBf16) {
    return element(piece, i, 0) | element(piece, i, 1) << 16;
  } else if constexpr (F == DeviceFormat::kFp8) {
    const int step = 2 * piece + i / 2;
    const int fragment = i % 2 * 2;
    return element(step, fragment, 0) | element(step, fragment, 1) << 8 |
           element(step, fragment + 1, 0) << 16 |
           element(step, fragment + 1, 1) << 24;
  } else {
    uint32_t word = 0;
    for (int f = 0; f < 4; ++f) {
      word |= (element(i, f, 0) >> (4 * piece) & 15) << (4 * f);
      word |= (element(i, f, 1) >> (4 * piece) & 15) << (4 * f + 16);
    }
    return word;
  }
}

// Block (unit, tile); a thread's words are `threads` apart.
template <DeviceFormat F>
__global__ void RepackData(Raw w, Target to) {
  constexpr int kWords = kUnitBytes<F> / 4;
  const int tile = to.first_tile + blockIdx.y * to.tile_step;
  auto* out = reinterpret_cast<uint32_t*>(
      to.data +
      (static_cast<int64_t>(tile) * to.units + blockIdx.x) * kUnitBytes<F>);
  for (int i = threadIdx.x; i < kWords; i += blockDim.x) {
    const int piece = i / (kLanes * 4);
    out[i] = WordAt<F>(w,
                       blockIdx.y * kTileRows,
                       blockIdx.x * kUnitCols,
                       i / 4 % kLanes,
                       piece,
                       i % 4);
  }
}

// Block tile; threads over (group, g). A group of the target lies in one of the
// weight's, which may be larger.
__global__ void RepackScales(Raw w, Target to, int groups) {
  const int tile = to.first_tile + blockIdx.x * to.tile_step;
  const int row0 = blockIdx.x * kTileRows;
  const int64_t base = static_cast<int64_t>(tile) * groups;
  const auto scale = [&](int row, int group) -> uint32_t {
    const int from = group * to.group / w.group;
    if (row >= w.rows || from * w.group >= w.cols) return 0;
    return w.scales[row * w.scale_stride + from];
  };
  // A missing bias makes the middle code zero; a power of two is exact.
  const auto bias = [&](int row, int group) -> uint32_t {
    const int from = group * to.group / w.group;
    if (row >= w.rows || from * w.group >= w.cols) return 0;
    if (w.biases != nullptr) return w.biases[row * w.scale_stride + from];
    const float value =
        -Bf16ToFloat(scale(row, group)) * static_cast<float>(1 << (w.bits - 1));
    return __bfloat16_as_ushort(__float2bfloat16(value));
  };
  for (int i = threadIdx.x; i < groups * 8; i += blockDim.x) {
    const int group = i / 8;
    const int row = row0 + i % 8;
    if (to.scales_only) {
      reinterpret_cast<uint32_t*>(to.scales)[base * 8 + i] =
          scale(row, group) | scale(row + 8, group) << 16;
    } else {
      reinterpret_cast<uint2*>(to.scales)[base * 8 + i] = {
          scale(row, group) | bias(row, group) << 16,
          scale(row + 8, group) | bias(row + 8, group) << 16};
    }
  }
}

__global__ void RepackFp8Scales(Raw w, Target to, int groups) {
  const int tile = to.first_tile + blockIdx.x * to.tile_step;
  const int64_t line = (w.first_row + blockIdx.x * kTileRows) / w.group;
  for (int i = threadIdx.x; i < groups; i += blockDim.x) {
    reinterpret_cast<uint16_t*>(to.scales)[int64_t{tile} * groups + i] =
        i * kFp8Cols < w.cols ? w.scales[line * w.scale_stride + i] : 0;
  }
}

template <DeviceFormat F>
absl::Status Repack(DeviceQueue* queue,
                    const Raw& raw,
                    const Target& to,
                    int32_t tiles) {
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(queue->device()), "the device"));
  const auto stream = static_cast<cudaStream_t>(queue->stream());
  RepackData<F><<<dim3(to.units, tiles), kThreads, 0, stream>>>(raw, to);
  const int groups = (to.units * kUnitCols + to.group - 1) / to.group;
  if constexpr (kIsAffine<F>) {
    RepackScales<<<tiles, kThreads, 0, stream>>>(raw, to, groups);
  } else if constexpr (F == DeviceFormat::kFp8) {
    RepackFp8Scales<<<tiles, kThreads, 0, stream>>>(raw, to, groups);
  }
  return ToStatus(cudaGetLastError(), "repacking weights");
}

// Of one row of scales.
int64_t ScalesOf(const WeightView& weight) {
  const int64_t group =
      weight.packing == Packing::kFp8Block ? kFp8Cols : weight.group;
  return (weight.cols + group - 1) / group;
}

}  // namespace
}  // namespace cuda

absl::Status MatrixLoader::Load(const WeightView& weight,
                                const MatrixPlan& plan,
                                int32_t index,
                                int32_t part,
                                DeviceMatrix* to) {
  const int64_t element = static_cast<int64_t>(SizeOf(weight.dtype));
  // Of the last row only what is its own: the view may be of some columns.
  const int64_t last = std::max<int64_t>(weight.rows - 1, 0);
  const uint64_t data_bytes =
      last * weight.row_stride * element + RowBytes(weight);
  const int64_t lines =
      weight.packing == Packing::kFp8Block
          ? (weight.first_row + weight.rows + weight.group - 1) / weight.group
          : weight.rows;
  const uint64_t scale_bytes =
      weight.packing == Packing::kPlain
          ? 0
          : ((lines - 1) * weight.scale_stride + cuda::ScalesOf(weight)) *
                sizeof(uint16_t);
  constexpr uint64_t kAlign = 256;
  const uint64_t scales_at = (data_bytes + kAlign - 1) / kAlign * kAlign;
  const uint64_t biases_at =
      (scales_at + scale_bytes + kAlign - 1) / kAlign * kAlign;
  const uint64_t all = biases_at + scale_bytes;
  // The kernels of the load before may still read the buffer: the stream
  // keeps copies behind them, and freeing waits for the device.
  if (raw_.bytes() < all) {
    ASSIGN_OR_RETURN(raw_, queue_->Allocate(all, "weights on their way"));
  }
  auto* raw = raw_.as<uint8_t>();
  RETURN_IF_ERROR(queue_->Upload(weight.data, data_bytes, raw));
  if (scale_bytes > 0) {
    RETURN_IF_ERROR(
        queue_->Upload(weight.scales, scale_bytes, raw + scales_at));
  }
  if (weight.biases != nullptr) {
    RETURN_IF_ERROR(
        queue_->Upload(weight.biases, scale_bytes, raw + biases_at));
  }
  int32_t first = part;
  if (!plan.interleaved) {
    first = 0;
    for (int32_t i = 0; i < part; ++i) first += TilesOf(plan.parts[i].rows);
  }
  const cuda::Raw from{
      .data = raw,
      .scales = reinterpret_cast<const uint16_t*>(raw + scales_at),
      .biases = weight.biases == nullptr
                    ? nullptr
                    : reinterpret_cast<const uint16_t*>(raw + biases_at),
      .row_stride = weight.row_stride * element,
      .scale_stride = weight.scale_stride,
      .rows = static_cast<int32_t>(weight.rows),
      .cols = static_cast<int32_t>(weight.cols),
      .bits = weight.bits,
      .group = weight.group,
      .first_row = static_cast<int32_t>(weight.first_row)};
  const cuda::Target target{
      .data = to->data.as<uint8_t>() +
              static_cast<uint64_t>(index) * (to->data_bytes / to->stack),
      .scales = to->scales.as<uint8_t>() +
                static_cast<uint64_t>(index) * (to->scale_bytes / to->stack),
      .first_tile = first,
      .tile_step = plan.interleaved ? 2 : 1,
      .units = to->units,
      .group = to->group,
      .scales_only = to->format == DeviceFormat::kGptq4};
  const int32_t tiles = TilesOf(weight.rows);
  switch (to->format) {
    case DeviceFormat::kBf16:
      return cuda::Repack<DeviceFormat::kBf16>(queue_, from, target, tiles);
    case DeviceFormat::kAffine4:
      return cuda::Repack<DeviceFormat::kAffine4>(queue_, from, target, tiles);
    case DeviceFormat::kAffine8:
      return cuda::Repack<DeviceFormat::kAffine8>(queue_, from, target, tiles);
    case DeviceFormat::kGptq4:
      return cuda::Repack<DeviceFormat::kGptq4>(queue_, from, target, tiles);
    case DeviceFormat::kFp8:
      return cuda::Repack<DeviceFormat::kFp8>(queue_, from, target, tiles);
  }
  return absl::InternalError("no such format");
}

}  // namespace conclave::kernels
