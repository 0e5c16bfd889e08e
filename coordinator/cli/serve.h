// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/cli/command.h"

namespace conclave::cli {

// The coordinator: HTTP port, engine and, with workers, the cluster.
Command ServeCommand();

}  // namespace conclave::cli
