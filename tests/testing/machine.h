// SPDX-License-Identifier: Apache-2.0
#pragma once

// Link conclave::kernels.

#include <cstdint>

#include "common/thread_pool.h"
#include "kernels/context.h"

namespace conclave::kernels {

// A context with what it points to.
struct Machine {
  explicit Machine(Backend backend, int32_t threads = 1)
      : pool(threads), context{backend, &pool, &workspace} {}
  ThreadPool pool;
  Workspace workspace;
  Context context;
};

}  // namespace conclave::kernels
