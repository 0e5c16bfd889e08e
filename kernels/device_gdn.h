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

enum class GdnDType : uint8_t { kF32, kBF16 };

// The states of one layer, all slots. A slot's convolution rows are a ring: the
// row of position p lies at p mod conv_kernel.
struct DeviceGdnState {
  float* conv = nullptr;      // [slots, conv_kernel, channels], always float32
  void* recurrent = nullptr;  // [slots, value_heads, key_dim, value_dim]
  GdnDType dtype = GdnDType::kF32;  // of the recurrent states
};

// In which order a step's rows are summed up.
enum class GdnForm {
  // One after the other, in float32. A row's bits do not depend on other
  // sequences, nor, where states are float32, on how a sequence was cut into
  // steps.
  kRecurrent,
  // Steps with kGdnChunkedRows rows of a sequence or more in chunks of up to
  // 64 rows on tensor cores: queries, keys, states and sums of a chunk are
  // rounded to 11 bits where a product reads them, sums and the states
  // themselves are float32. Bits depend on how a sequence was cut into steps,
  // and for all rows of such a step; states differ from the recurrent form's
  // by 1e-3 of their size at most, a head's rows (before y is rounded) by as
  // much of the products they are sums of. Other steps, and devices whose
  // blocks have less than 226 KiB of shared memory: the recurrent form.
  kChunked,
};

inline constexpr int32_t kGdnChunkedRows = 64;

// Gated DeltaNet between its projections, as kernels/gdn.h has it, float32 but
// for what the form rounds. key_dim and value_dim are 128, conv_kernel 4,
// value_heads even; others are InvalidArgument. rows_max == 1 says that each
// sequence has exactly one row. slot_in, slot_out and position may be read
// before the kernel queued before has ended: they come from copies, not from
// kernels. projected: [rows, channels + values + 2 value_heads], in the order
// q | k | v | z | b | a, float32; scratch: GdnScratchFloats of the same form.
// y: [rows, values]. States in bf16 are float32 from row to row of a step; only
// what is written is rounded, to nearest, ties to even. After a row with a slot
// its ring holds the rows of its position and the three before.
absl::Status DeviceGdn(DeviceQueue* queue,
                       const GdnShape& shape,
                       const DeviceGdnWeights& weights,
                       const DeviceGdnState& state,
                       const DeviceStep& step,
                       GdnForm form,
                       const float* projected,
                       float* scratch,
                       const DeviceRows& y);

// Of a step of `rows` rows.
size_t GdnScratchFloats(const GdnShape& shape, GdnForm form, int32_t rows);

}  // namespace conclave::kernels
