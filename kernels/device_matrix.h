// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/weight_layout.h"
#include "kernels/device_queue.h"
#include "kernels/weight.h"

namespace conclave::kernels {

// How a device matrix holds its numbers. kAffine: scales and biases in bf16;
// 3-bit codes become kAffine4, 5 and 6 bits kAffine8, missing biases what they
// stand for: the same numbers. kGptq4: scales in f16, no biases.
enum class DeviceFormat : uint8_t { kBf16, kAffine4, kAffine8, kGptq4, kFp8 };

// Linears of one format and one input, repacked for tensor cores: tiles of 16
// rows by 64 columns, a tile's columns one after the other, then the next 16
// rows. Lane 4 g + t of a warp reads 16 bytes at a time, all of which it uses:
// of rows g and g + 8 the columns 32 (s / 2) + 8 t + 4 (s % 2) + {0, 1, 2, 3}
// for s = 0 to 3, the A fragments of four products of 16 columns.
//   kBf16     [s][lane] a0 a1 a2 a3 (two numbers each)
//   kAffine4, kGptq4
//             [lane] four words, one per s: nibble i (of 0 to 3) and 4 + i of
//             a word are fragment a_i
//   kAffine8  such a tile of low nibbles, then one of high nibbles
//   kFp8      [s / 2][lane] four words: per s bytes a0 a0 a1 a1, a2 a2 a3 a3
// Scales: per 16 rows and group of columns [g] {row g, row g + 8}, each scale
// and bias, kGptq4 scale alone; FP8: one per 16 rows and 128 columns.
// Columns are filled up to 64, rows to 16, with zeros.
struct DeviceMatrix {
  DeviceFormat format = DeviceFormat::kBf16;
  int32_t group = 64;    // columns of a scale
  int32_t cols = 0;      // of the linears
  int32_t units = 0;     // of 64 columns
  int32_t tiles = 0;     // of 16 rows, of one of the stack
  int32_t stack = 1;     // as many of them one after the other (experts)
  int32_t out_cols = 0;  // width of an output row
  DeviceBuffer data;
  DeviceBuffer scales;
  // Where a tile's rows go in an output row, and how many of them there are:
  // [tiles] {first, count}.
  DeviceBuffer places;

  // Used of the two above, a multiple of `stack` each.
  uint64_t data_bytes = 0;
  uint64_t scale_bytes = 0;

  uint64_t bytes() const { return data_bytes + scale_bytes; }
};

// What a matrix is made of, from top to bottom.
struct MatrixPlan {
  std::vector<WeightLayout> parts;  // one format, one number of columns
  int32_t stack = 1;
  // Two parts of equal shape, tile by tile in turn: gate and up of an expert,
  // whose products then meet in one thread.
  bool interleaved = false;
  // Where the parts stand in an output row of `row_width` columns; 0: they are
  // all of it.
  int32_t first_column = 0;
  int32_t row_width = 0;
};

// Tiles of so many rows.
inline int32_t TilesOf(int64_t rows) {
  constexpr int64_t kTileRows = 16;
  return static_cast<int32_t>((rows + kTileRows - 1) / kTileRows);
}

// InvalidArgument: a format that is not known here, or parts that differ.
// `what` is named in errors.
absl::StatusOr<DeviceMatrix> MakeMatrix(DeviceQueue* queue,
                                        const MatrixPlan& plan,
                                        const std::string& what);
// Whether weights of these layouts can share one matrix.
bool CanShare(const WeightLayout& a, const WeightLayout& b);
uint64_t MatrixBytes(const MatrixPlan& plan);

// Copies weights to the device and repacks them there; keeps a buffer for it.
class MatrixLoader {
 public:
  explicit MatrixLoader(DeviceQueue* queue) : queue_(queue) {}
  // Part `part` of matrix `index` of the stack. `weight` lies in host memory
  // and may be freed on return.
  absl::Status Load(const WeightView& weight,
                    const MatrixPlan& plan,
                    int32_t index,
                    int32_t part,
                    DeviceMatrix* to);

 private:
  DeviceQueue* queue_;
  DeviceBuffer raw_;
};

// Made-up weights, the same for the same seed: zero mean, of standard deviation
// gain / sqrt(cols).
absl::Status FillMadeUp(DeviceQueue* queue,
                        uint64_t seed,
                        double gain,
                        DeviceMatrix* to);

// The same for a table that stays as checkpoints store it; arrays as in
// StoredWeight, in device memory.
absl::Status FillMadeUpTable(DeviceQueue* queue,
                             uint64_t seed,
                             const WeightView& table);

}  // namespace conclave::kernels
