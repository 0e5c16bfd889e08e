// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "coordinator/cli/command.h"

namespace conclave::cli {

Command DoctorCommand();

}  // namespace conclave::cli
