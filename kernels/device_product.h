// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_matrix.h"
#include "kernels/device_step.h"

namespace conclave::kernels {

// out[r][o] = sum_i w[o][i] x[r][i], float32, [rows, matrix.out_cols]. x is
// [rows, 64 units] with zeros from matrix.cols on. Rows in bf16: weights enter
// as stored, sums are float32 (affine: scale * sum(q x) + bias * sum(x) per
// group; from kWideRows rows on a weight is rounded to bf16 first). Rows in
// float32: everything is float32. A row's bits do not depend on other rows,
// but on which of these forms their number calls for.
// planes: 1, or as many as DevicePlanes says: then out is [planes, rows,
// out_cols] and the sum over planes, in their order, is the product. That
// fills the device where a matrix has few rows.
// `low`: null, or what rounding to bf16 lost of x, as bf16: then products are
// near float32 (routers).
absl::Status DeviceProduct(DeviceQueue* queue,
                           const DeviceMatrix& matrix,
                           const DeviceRows& x,
                           const void* low,
                           int32_t rows,
                           int32_t planes,
                           float* out);
int32_t DevicePlanes(const DeviceQueue& queue,
                     const DeviceMatrix& matrix,
                     int32_t rows,
                     bool bf16);
inline constexpr int32_t kPlanesMax = 8;

// Which (row, expert) pairs a step computes, sorted by expert; made on the
// device (device_moe.h), so that routing never visits the host.
struct DeviceEntries {
  int32_t rows = 0;
  int32_t per_row = 0;        // pairs of a row: top_k, and the shared expert
  int32_t experts = 0;        // matrices of the stack
  int32_t group_rows = 8;     // pairs of a group at most
  int32_t groups_max = 0;     // bound of *group_count
  bool all_groups = false;    // that many there are, which is not looked up
  int32_t* row = nullptr;     // [rows * per_row], sorted: row of a pair
  int32_t* place = nullptr;   // [rows, per_row]: where row r's pair j is sorted
  int32_t* expert = nullptr;  // [rows, per_row]
  float* weight = nullptr;    // [rows, per_row]
  // {expert, first pair, pairs, 0}, [groups_max]
  int32_t* groups = nullptr;
  int32_t* group_count = nullptr;
};

// hidden[p] = silu(gate x[row[p]]) * (up x[row[p]]), y[p] = down hidden[p] for
// every pair p whose expert is one of [first, first + gate_up.stack); others
// are left alone. gate_up is interleaved. hidden: [pairs, 64 down.units] in the
// type of x; y: [pairs, out_cols], float32, without the weights.
struct DeviceExpertStack {
  DeviceMatrix gate_up, down;
  int32_t first = 0;
};
absl::Status DeviceExperts(DeviceQueue* queue,
                           const DeviceExpertStack& stack,
                           const DeviceEntries& entries,
                           const DeviceRows& x,
                           const DeviceRows& hidden,
                           float* y);

// Pairs of a group that suit so many pairs over so many experts: 8, 16, 32 or
// 128.
int32_t GroupRowsFor(int64_t pairs, int32_t experts);
int32_t GroupsMax(int64_t pairs, int32_t experts, int32_t group_rows);

}  // namespace conclave::kernels
