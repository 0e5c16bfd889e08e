// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/checkpoint/shard_weights.h"

namespace conclave::worker {

// Shows a load on standard error: a bar that moves on a terminal, else a line
// every few seconds. One load at a time.
checkpoint::LoadProgressFn LoadDisplay();

}  // namespace conclave::worker
