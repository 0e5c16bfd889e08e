// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/cli/command.h"

namespace conclave::cli {

// What fits where and how fast it will be, without touching any weights.
Command PlanCommand();

}  // namespace conclave::cli
