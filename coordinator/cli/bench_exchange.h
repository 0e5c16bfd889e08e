// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "coordinator/cli/command.h"

namespace conclave::cli {

struct BenchExchangeOptions {
  int32_t rounds = 2000;  // per frame size; a tenth of it above 256 KiB
};

// Time there and back of frames between processes on loopback: the production
// transport as shipped against blocking sockets, interleaved in one run; with
// one peer at rest, then with two peers and all compute threads at work.
// Prints a table. Must run before this process starts a thread.
absl::Status BenchExchange(const BenchExchangeOptions& options);

Command BenchExchangeCommand();

}  // namespace conclave::cli
