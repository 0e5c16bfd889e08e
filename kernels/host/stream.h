// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
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
  // What befalls the device before each work: it may take its time or fail.
  // After a failure nothing is done until somebody is told.
  std::function<absl::Status()> fault;
  absl::Status failure;

  void Do(Work work) {
    if (recording) {
      recorded.push_back(std::move(work));
    } else {
      Run(work);
    }
  }
  void Run(const Work& work) {
    if (fault != nullptr && failure.ok()) failure = fault();
    if (failure.ok()) work();
  }
  absl::Status Told() { return std::exchange(failure, absl::OkStatus()); }
};

inline Stream* StreamOf(const DeviceQueue* queue) {
  return static_cast<Stream*>(queue->stream());
}

}  // namespace conclave::kernels::host
