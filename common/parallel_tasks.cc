// SPDX-License-Identifier: Apache-2.0
#include "common/parallel_tasks.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <vector>

namespace conclave {

absl::Status ParallelTasks(int64_t n,
                           int32_t threads,
                           absl::FunctionRef<absl::Status(int64_t task)> task) {
  std::mutex mu;
  int64_t next = 0;
  absl::Status error;
  const auto work = [&] {
    while (true) {
      int64_t mine = 0;
      {
        const std::lock_guard<std::mutex> lock(mu);
        if (next >= n || !error.ok()) return;
        mine = next++;
      }
      const absl::Status status = task(mine);
      if (status.ok()) continue;
      const std::lock_guard<std::mutex> lock(mu);
      error.Update(status);
      return;
    }
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = std::min<int64_t>(n, threads) - 1;
  for (int64_t i = 0; i < wanted; ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return error;
}

}  // namespace conclave
