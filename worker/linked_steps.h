// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device_held_pairs.h"
#include "kernels/device_link.h"
#include "kernels/device_queue.h"
#include "worker/expert_device.h"
#include "worker/expert_store.h"

namespace conclave::worker {

// Steps whose rows come from rank 0 of a link, from device to device: for each
// layer of which this worker has slices, in order, rows and what the router
// chose for them come in, and a partial sum of each shard goes out. Used by one
// thread, but for layers().
class LinkedSteps {
 public:
  struct Shape {
    int32_t rows_max = 0;  // of a step
    int32_t per_row = 0;   // choices of a row, the shared expert's too
    int32_t experts = 0;   // of a layer
    int32_t pairs_max = ExpertDevice::kPairsMax;  // computed at a time
  };
  // What buffers take on the device. InvalidArgument: rows of a width that
  // cannot travel.
  static absl::StatusOr<uint64_t> BytesOf(const Assignment& assignment,
                                          const Shape& shape);

  // Joins the link with all other ranks. Errors are those of the queue and of
  // DeviceLink::Create. The assignment, whose experts are on the queue's
  // device, is kept as long as this lives.
  static absl::StatusOr<std::unique_ptr<LinkedSteps>> Create(
      std::unique_ptr<kernels::DeviceQueue> queue,
      std::shared_ptr<const Assignment> assignment,
      const Shape& shape,
      const kernels::DeviceLink::Options& link);
  // Recordings go before the link that they use.
  ~LinkedSteps();

  // All layers of a step. `record`: such a step comes again. After an error
  // the link is of no further use; it names the layer that was waited for.
  absl::Status Run(int32_t rows, bool record);

  // Of the step under way or run last: layers whose sums were sent. From any
  // thread.
  int32_t layers() const;

 private:
  // The slices that a shard has in a layer.
  struct Part {
    const kernels::DeviceExpertStack* stack = nullptr;
    int32_t width = 0;
    kernels::DeviceHeld held;
  };
  struct Layer {
    int32_t index = 0;
    std::vector<Part> parts;  // ascending shards
  };
  LinkedSteps(std::unique_ptr<kernels::DeviceQueue> queue,
              std::shared_ptr<const Assignment> assignment,
              const Shape& shape);
  absl::Status MakeBuffers();
  absl::Status MakeLayers();
  absl::Status QueueStep(int32_t rows);
  absl::Status Receive(int32_t rows);
  absl::Status SumPart(const Part& part, int32_t rows, float* out);
  absl::Status Launch(int32_t rows);

  // The queue outlives what was allocated on it, the link what was recorded.
  const std::unique_ptr<kernels::DeviceQueue> queue_;
  const std::shared_ptr<const Assignment> assignment_;
  const Shape shape_;
  const bool exact_;
  std::vector<Layer> layers_;
  // Whether all widths are such that no buffer need be emptied in between.
  bool may_record_ = true;
  kernels::DeviceBuffer numbers_;  // of all parts, [parts, experts]
  kernels::DeviceBuffer x_, expert_, weight_, wide_, words_, hidden_, y_, sums_;
  std::unique_ptr<kernels::DeviceLink> link_;
  std::map<int32_t, kernels::DeviceGraph> graphs_;  // by rows
  std::atomic<int64_t> begun_at_ = 0;               // exchanges before the step
};

}  // namespace conclave::worker
