// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/device_queue.h"

namespace conclave::kernels {

// Rows that products read, in the mode of the model: bf16, or float32 where
// the caller asked for exact activations. Device memory, dense.
struct DeviceRows {
  void* data = nullptr;
  bool bf16 = true;
  // Room for the same rows in the order that warpgroup products want; null:
  // those are not used.
  void* wide = nullptr;
};

// kernels/step_batch.h in device memory. Pointers are device memory, numbers
// are known to the host; a recorded step keeps pointers and numbers, and only
// the contents change. Rows that fill a recorded step up are sequences at
// position 0 without a state (slot_in and slot_out < 0) that share one KV
// block nobody else uses.
struct DeviceStep {
  int32_t rows = 0;
  int32_t sequences = 0;
  int32_t rows_max = 1;            // of one sequence
  int32_t positions_max = 1;       // bound of position + rows over sequences
  const int32_t* token = nullptr;  // [rows]
  const int32_t* sequence_of = nullptr;  // [rows]
  const int32_t* position = nullptr;     // [rows]
  // GDN and convolution state: read before the first row of a sequence
  // (< 0: zeros), written after a row where slot_out >= 0.
  const int32_t* slot_out = nullptr;   // [rows]
  const int32_t* row_begin = nullptr;  // [sequences + 1]
  const int32_t* slot_in = nullptr;    // [sequences]
  // KV block i of a sequence holds positions [64 i, 64 (i + 1)).
  const int32_t* kv_blocks = nullptr;  // [sequences, kv_stride]
  int32_t kv_stride = 0;
};

}  // namespace conclave::kernels
