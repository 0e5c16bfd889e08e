// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_step.h"
#include "kernels/gdn.h"

namespace conclave::kernels {

// The small tensors of a GDN layer in device memory, float32; shapes as in
// GdnWeights.
struct DeviceGdnWeights {
  const float* conv = nullptr;
  const float* a_log = nullptr;
  const float* dt_bias = nullptr;
  const float* norm = nullptr;
};

// The states of one layer, all slots, float32. A slot's convolution rows are a
// ring: the row of position p lies at p mod conv_kernel.
struct DeviceGdnState {
  float* conv = nullptr;       // [slots, conv_kernel, channels]
  float* recurrent = nullptr;  // [slots, value_heads, key_dim, value_dim]
};

// Gated DeltaNet between its projections, as kernels/gdn.h has it: all rows in
// the recurrent form, float32 throughout. key_dim and value_dim are 128,
// conv_kernel 4, value_heads even; others are InvalidArgument. rows_max == 1
// says that each sequence has exactly one row. slot_in, slot_out and position
// may be read before the kernel queued before has ended: they come from
// copies, not from kernels. projected: [rows, channels + values + 2
// value_heads], in the order q | k | v | z | b | a, float32; scratch:
// GdnScratchFloats. y: [rows, values]. A row's bits do not depend on other
// sequences, nor on how a sequence was cut into steps. After a row with a slot
// its ring holds the rows of its position and the three before.
absl::Status DeviceGdn(DeviceQueue* queue,
                       const GdnShape& shape,
                       const DeviceGdnWeights& weights,
                       const DeviceGdnState& state,
                       const DeviceStep& step,
                       const float* projected,
                       float* scratch,
                       const DeviceRows& y);

// Of a step of `rows` rows.
size_t GdnScratchFloats(const GdnShape& shape, int32_t rows);

}  // namespace conclave::kernels
