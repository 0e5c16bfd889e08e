// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_queue.h"

namespace conclave::kernels {

// How one row's token is chosen; the order and meaning of coordinator/sample:
// penalties, temperature, top-k, top-p, min-p, draw. Bias is not here: rows
// with a bias are sampled on the host. Doubles as the host has them, so that
// both compute the same numbers.
struct DeviceSampling {
  double temperature = 0;  // 0: greedy
  double top_p = 1;
  double min_p = 0;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double repetition_penalty = 1;
  double uniform = 0;      // in [0, 1), the draw of this seed and position
  int32_t top_k = 0;       // 0: all
  int32_t counts_row = 0;  // of `counts`
};

// token[r] = a choice from logits[r], [rows, vocab] float32; ids from
// vocab_used on are neither read nor chosen. counts: [sequences, vocab_used],
// how often a token was generated; -1 - n where it also (n: generated) stands
// in the prompt; read only, and only for rows with a penalty (else it may be
// null). scratch: SamplingScratchBytes, 256-byte aligned, of any content. All
// pointers are device memory. Greedy: the largest, the lowest id of equals.
// Rows whose logits are not finite, after penalties, get token -1.
//
// The token is the host's, but for rounding: weights are counted in units of
// 2^-42 of the largest and summed exactly, where the host sums doubles, so a
// draw or a top-p sum that falls within 1e-7 of the total (in practice 1e-10)
// of a border may land on its other side. Tokens whose weight is under 2^-43 of
// the largest are never drawn.
absl::Status DeviceSample(DeviceQueue* queue,
                          const float* logits,
                          int32_t rows,
                          int32_t vocab,
                          int32_t vocab_used,
                          const DeviceSampling* sampling,
                          const int32_t* counts,
                          void* scratch,
                          int32_t* token);
size_t SamplingScratchBytes(int32_t rows, int32_t vocab_used);

// Counts token[r] as generated in row sampling[r].counts_row of `counts`; rows
// with a token outside [0, vocab_used) count nothing. Device memory throughout.
absl::Status DeviceCount(DeviceQueue* queue,
                         const int32_t* token,
                         const DeviceSampling* sampling,
                         int32_t rows,
                         int32_t vocab_used,
                         int32_t* counts);

}  // namespace conclave::kernels
