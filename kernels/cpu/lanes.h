// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "kernels/context.h"

namespace conclave::kernels {

// Multiply-adds below which a second thread costs more than it brings.
inline constexpr int64_t kMacsPerLane = 64 * 1024;

// How many lanes share `tasks` tasks of `macs` multiply-adds in all.
inline int64_t LanesFor(const Context& context, int64_t tasks, int64_t macs) {
  const int64_t most = std::min<int64_t>(context.pool->threads(), tasks);
  return std::clamp<int64_t>(
      macs / kMacsPerLane, 1, std::max<int64_t>(most, 1));
}

// body(lane, task) for every task; tasks of one lane run one after the other,
// so that a lane may own scratch memory.
template <class Body>
void ForTasks(const Context& context,
              int64_t lanes,
              int64_t tasks,
              const Body& body) {
  std::atomic<int64_t> next{0};
  context.pool->ParallelFor(lanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end; ++lane) {
      for (int64_t task = next.fetch_add(1, std::memory_order_relaxed);
           task < tasks;
           task = next.fetch_add(1, std::memory_order_relaxed)) {
        body(lane, task);
      }
    }
  });
}

}  // namespace conclave::kernels
