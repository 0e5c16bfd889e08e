// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/cli/command.h"

namespace conclave::cli {

// Talks to a running server in the terminal.
Command ChatCommand();

}  // namespace conclave::cli
