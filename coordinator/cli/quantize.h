// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/cli/command.h"

namespace conclave::cli {

// Writes a checkpoint in another weight format.
Command QuantizeCommand();

}  // namespace conclave::cli
