// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/slices.h"
#include "common/transport/transport.h"
#include "coordinator/experts/link_failure.h"
#include "kernels/device_product.h"
#include "kernels/device_queue.h"
#include "kernels/device_rows.h"

namespace conclave::experts {

// What a worker is told to join.
struct LinkInvitation {
  uint64_t link = 0;  // its number
  std::string id;
  int32_t rank = 0;
  int32_t ranks = 0;
  int32_t rows_max = 0;
  int32_t per_row = 0;
  int32_t experts = 0;
  absl::Duration join, exchange;  // deadlines
};

// What LinkedExperts needs; the caller keeps everything alive.
struct LinkedOptions {
  Placement placement;
  ExpertShape shape;
  int32_t workers = 0;  // ids [0, workers); worker i is rank 1 + i
  int32_t per_row = 0;  // choices of a row, the shared expert's too
  int32_t rows_max = 0;
  bool exact = false;             // rows travel as float32
  std::vector<bool> routed_here;  // [layers]; those need no worker
  transport::Transport* transport = nullptr;
  // Quick; from the engine's thread.
  std::function<LinkPeer(WorkerId)> look;
  // Returns when that worker has joined, at the latest after the deadline of
  // joining and as much again; called by a thread of its own. Errors name the
  // worker.
  std::function<absl::Status(WorkerId, const LinkInvitation&)> join;
  Clock* clock = nullptr;
  Metrics* metrics = nullptr;  // may be null
  uint64_t generation = 0;     // of this life of the coordinator, not 0
  absl::Duration connect = absl::Seconds(5);   // for all to join
  absl::Duration deadline = absl::Seconds(5);  // for the next exchange to pass
};

// Routed experts on workers whose rows travel from device to device: what the
// decoder on a device uses instead of Experts. All layers of a step are queued
// without waiting. Made once; a link that broke is joined anew by the next
// step. Used by the engine thread alone. After an error of a step, which names
// worker and layer, the caller destroys what it recorded, then calls Leave.
class LinkedExperts {
 public:
  // InvalidArgument: a layer of which the coordinator holds a part.
  static absl::StatusOr<std::unique_ptr<LinkedExperts>> Create(
      LinkedOptions options);
  ~LinkedExperts();

  // Device memory that Attach takes; of the options, what comes from the file
  // is enough. Errors as Create.
  static absl::StatusOr<uint64_t> BytesOf(const LinkedOptions& options);
  // The device that the decoder uses, until Detach. What is recorded on it is
  // destroyed before Detach.
  absl::Status Attach(kernels::DeviceQueue* queue);
  void Detach();

  // Before the layers of a step: joins if need be, and tells the workers.
  // `record`: such a step comes again. Not between BeginRecording and
  // EndRecording.
  absl::Status BeginStep(int32_t rows, bool record);

  // Queues the sending of u, [rows, hidden], and of what the router chose.
  absl::Status Start(LayerId layer,
                     const kernels::DeviceEntries& all,
                     const kernels::DeviceRows& u);
  // The pairs of the shared expert, for DeviceExperts, between the two.
  const kernels::DeviceEntries& shared() const;
  // Queues the sums: *sum = those of the shards, in their order, and of the
  // shared expert, whose pairs are `pairs`.
  absl::Status Finish(LayerId layer,
                      const float* pairs,
                      kernels::DeviceAddend* sum);

  // Until all that is queued is done.
  absl::Status Wait();
  // A step was begun and Wait has not said that it ended well.
  bool in_step() const;
  // Ends the link.
  void Leave();

  // What the step answered last, if that was an error: the device had no part
  // in it.
  const absl::Status& failure() const;

  struct Impl;

 private:
  explicit LinkedExperts(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::experts
