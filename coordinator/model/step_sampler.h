// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/device_sampling.h"
#include "kernels/step_batch.h"

namespace conclave::model {

// Steps whose tokens are chosen where the logits are: only tokens come back.
// Made by a decoder, used by its thread.
class StepSampler {
 public:
  virtual ~StepSampler() = default;

  // Tells which tokens stand in the sequence with this state slot, as
  // kernels/device_sampling.h counts them, [vocab_used]. Due before its first
  // Run with a penalty, and when tokens came that no Run chose since.
  virtual absl::Status SetCounts(int32_t slot,
                                 std::span<const int32_t> counts) = 0;

  // A step of one row per sequence. next[i] is chosen after sequence i as
  // how[i] says, whose counts_row is the state slot; it is counted where how[i]
  // has a penalty. -1: the logits are not finite. Errors as Decoder::Run.
  virtual absl::Status Run(const kernels::StepBatch& batch,
                           std::span<const int32_t> tokens,
                           std::span<const kernels::DeviceSampling> how,
                           std::span<int32_t> next) = 0;
};

}  // namespace conclave::model
