// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device_product.h"

namespace conclave::kernels {

// logits: [planes, rows, experts + 1], whose sum over planes is the router's
// products and, last, the shared expert's gate. Chooses as kernels/moe.h :
// Route does, in float32; adds the shared expert (number `experts`, weight
// sigmoid(gate)) as the last pair of each row; sorts the pairs by expert (those
// of a row that is alone have an order of their own) into entries->row, place,
// groups and group_count. entries->per_row = top_k + 1,
// entries->experts = experts + 1. experts <= 1024, top_k <= 32.
absl::Status DeviceRoute(DeviceQueue* queue,
                         const float* logits,
                         int32_t planes,
                         const DeviceEntries& entries);

}  // namespace conclave::kernels
