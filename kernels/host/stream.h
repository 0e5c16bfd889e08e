// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "common/thread_pool.h"
#include "kernels/context.h"
#include "kernels/device_queue.h"

// The blocks of kernels/device_*.h in host memory, in loops: what is linked
// where CUDA is not built. DeviceQueue::Create(kHostDevice) gives such a
// device, for tests; a GPU there is none.
namespace conclave::kernels::host {

using Work = std::function<void()>;

// What DeviceQueue::stream points to. Work is done at once, or kept while a
// step is recorded.
struct Stream {
  ThreadPool pool{1};
  Workspace workspace;
  Context context{
      .backend = Backend::kCpu, .pool = &pool, .workspace = &workspace};
  bool recording = false;
  std::vector<Work> recorded;

  void Do(Work work) {
    if (recording) {
      recorded.push_back(std::move(work));
    } else {
      work();
    }
  }
};

inline Stream* StreamOf(const DeviceQueue* queue) {
  return static_cast<Stream*>(queue->stream());
}

}  // namespace conclave::kernels::host
