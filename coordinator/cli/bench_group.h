// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace conclave::cli {

// Time of one sum over these GPUs in a recorded step, both ways of exchange, by
// rows of a step, against stores and a flag there and back in the same run.
// Prints a table.
absl::Status BenchGroupExchange(const std::vector<int32_t>& gpus);

}  // namespace conclave::cli
