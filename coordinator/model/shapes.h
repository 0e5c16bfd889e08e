// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/checkpoint/model_config.h"
#include "kernels/attention.h"
#include "kernels/gdn.h"

namespace conclave::model {

// The blocks' shapes of a model.
kernels::AttentionShape AttentionShapeOf(const checkpoint::ModelConfig& config);
kernels::GdnShape GdnShapeOf(const checkpoint::ModelConfig& config);

}  // namespace conclave::model
