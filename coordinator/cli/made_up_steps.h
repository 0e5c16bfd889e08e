// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "coordinator/experts/experts.h"
#include "coordinator/model/decoder.h"
#include "kernels/context.h"

namespace conclave::cli {

// Made-up tokens on the bare decoder: no HTTP, no text, no sampling.
class MadeUpSteps {
 public:
  struct Options {
    kernels::Backend backend = kernels::Backend::kCpu;
    int32_t sequences = 1;  // at most
    int32_t tokens = 1;     // of each, at most
    kernels::Activations activations = kernels::Activations::kF32;
    model::MicroBatchSettings micro_batches = {};
  };
  // Checkpoint, experts and pool outlive the steps.
  static absl::StatusOr<std::unique_ptr<MadeUpSteps>> Create(
      const checkpoint::Checkpoint& checkpoint,
      experts::Experts* experts,
      ThreadPool* pool,
      const Options& options);

  // Runs `rows` new tokens of each sequence; prefill when there are several.
  absl::Status Run(int32_t sequences, int32_t rows, int32_t position);

 private:
  MadeUpSteps() = default;
  std::unique_ptr<model::Decoder> decoder_;
  int32_t blocks_ = 0;  // of a sequence
  int32_t vocab_ = 1;
};

}  // namespace conclave::cli
