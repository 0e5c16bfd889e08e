// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace conclave {

// Calls task(0) .. task(n - 1), each once and in this order of beginning, in
// threads of its own, the caller among them; for tasks that wait for disks and
// networks, which the compute threads must not. After the first error no
// further task begins; that error is returned when all threads are done.
absl::Status ParallelTasks(int64_t n,
                           int32_t threads,
                           absl::FunctionRef<absl::Status(int64_t task)> task);

}  // namespace conclave
