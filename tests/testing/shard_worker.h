// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "common/thread_pool.h"
#include "common/transport/memory_transport.h"
#include "common/transport/transport.h"
#include "coordinator/experts/local_shards.h"
#include "kernels/context.h"

namespace conclave::testing {

// A small worker for clusters in one process: answers a request frame with the
// partial sums of its shards. `shards` and `pool` outlive the handler.
transport::FrameHandler ShardWorker(const experts::LocalShards* shards,
                                    kernels::Backend backend,
                                    ThreadPool* pool);

}  // namespace conclave::testing
