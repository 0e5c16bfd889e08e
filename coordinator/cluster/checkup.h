// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/transport/channel.h"
#include "conclave/v1/config.pb.h"
#include "conclave/v1/control.pb.h"
#include "coordinator/cluster/reach.h"

namespace conclave::cluster {

// What one worker's control plane says.
struct Checkup {
  ReachResult reach;
  absl::Status control;  // of the calls, where `reach` is kOk
  std::string version;
  std::string simd;
  int32_t threads = 0;
  uint64_t generation = 0;  // that it serves; 0: none
  uint64_t memory_free_bytes = 0;
  uint64_t memory_total_bytes = 0;
  uint64_t resident_bytes = 0;
  bool tells_time = false;
  double clock_offset_s = 0;  // worker minus coordinator
  double clock_error_s = 0;   // the offset is that uncertain

  bool ok() const { return reach.reach == Reach::kOk && control.ok(); }
};

struct CheckupOptions {
  transport::TlsKeys keys;
  absl::Duration deadline = absl::Seconds(5);  // of every single wait
  Clock* clock = nullptr;
};

// Resolves, connects, registers, asks for health. Changes nothing on the
// worker, which may be serving.
Checkup CheckWorker(const v1::Worker& worker, const CheckupOptions& options);

// Lets all workers measure at the same time, as they compute at the same time;
// in the order of `workers`.
std::vector<absl::StatusOr<v1::MeasureReply>> MeasureWorkers(
    const std::vector<v1::Worker>& workers,
    const v1::MeasureRequest& request,
    const CheckupOptions& options);

}  // namespace conclave::cluster
