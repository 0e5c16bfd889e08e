// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/cli/command.h"

namespace conclave::cli {

// Decode and prefill speed of a model on this machine or of a cluster; every
// row of the table is taken in one run, interleaved, but for --over, which
// measures one way after the other.
Command BenchDecodeCommand();

}  // namespace conclave::cli
