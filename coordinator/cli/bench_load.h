// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/cli/command.h"

namespace conclave::cli {

// How fast a checkpoint, and the same experts from a slice cache, come from the
// disk, beside plain reading of the same files in the same run.
Command BenchLoadCommand();

}  // namespace conclave::cli
