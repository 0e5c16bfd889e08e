// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/checkpoint/model_config.h"
#include "coordinator/model/decoder.h"
#include "kernels/step_batch.h"

namespace conclave::model {

// Checks a step against the bounds of model and pools before any memory is
// touched. InvalidArgument names the sequence.
absl::Status CheckStep(const checkpoint::ModelConfig& config,
                       const StateSizes& sizes,
                       const kernels::StepBatch& batch,
                       std::span<const int32_t> tokens,
                       std::span<const int32_t> logit_rows);

}  // namespace conclave::model
