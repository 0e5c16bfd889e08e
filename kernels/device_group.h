// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device_queue.h"
#include "kernels/device_rows.h"

namespace conclave::kernels {

// How ranks of a group on GPUs exchange rows; both give the same bits.
enum class GroupExchange : uint8_t {
  kPeer,  // each stores its rows into the others' memory (NVLink)
  kNccl,  // all-gather: works wherever NCCL does
};

// One sum of a step as one rank queues it. The sums of a step are numbered 0,
// 1, 2, ..., an even number of them. In each one every rank waits for every
// other, for its part or for the word that it has none: nobody is ahead by two,
// so that two buffers, in turn, are enough.
struct GroupSum {
  int32_t number = 0;
  int32_t only = -1;       // the one rank that has a part; -1: all have
  int32_t rows = 0;        // the same on every rank
  DeviceAddend part = {};  // this rank's: dense or pairs; or none
  const float* w = nullptr;
  float eps = 0;
  float* x = nullptr;
  DeviceRows u = {};
  void* low = nullptr;
};

// Columns of rows that each rank has computed a part of, on their way to rank
// 0, as one rank queues them.
struct GroupColumns {
  int32_t rows = 0;  // the same on every rank
  // This rank's, [rows, its columns]; rank 0's own stand where all will.
  const float* part = nullptr;
  // Columns were gathered since the last sum, or since the step began: then
  // ranks wait until rank 0 comes here, done with those.
  bool again = false;
};

// Devices of this process that compute one model together, one rank each:
// DeviceAddNorm with one more addend, what the other ranks sent. A rank's calls
// come from one thread at a time, different ranks' from different ones.
class DeviceGroup {
 public:
  struct Options {
    int32_t rows_max = 0;
    int32_t cols = 0;
    // Groups whose steps run on these devices at the same time: none may take
    // so much of them that the others cannot go on.
    int32_t lanes = 1;
    // Of rows that are gathered: the first column of each rank, and behind the
    // last one's; [ranks + 1], multiples of 4 but for the end. A rank may have
    // none, rank 0 begins at 0. Empty: there are no such rows.
    std::vector<int32_t> columns = {};
    int32_t gathered_max = 0;  // rows at a time
    // Of each wait for another rank.
    absl::Duration deadline = absl::Seconds(5);
    GroupExchange exchange = GroupExchange::kPeer;
  };
  // queues: [ranks], which outlive the group. Unavailable: these GPUs cannot
  // reach each other's memory, or this build lacks NCCL; the message says so.
  static absl::StatusOr<std::unique_ptr<DeviceGroup>> Create(
      std::span<DeviceQueue* const> queues, const Options& options);
  // Bytes on one rank's device beside the model's.
  static uint64_t BytesOf(int32_t ranks, int32_t rank, const Options& options);
  ~DeviceGroup();
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  int32_t ranks() const;
  const Options& options() const;

  // Queues, for each row r: x[r] += the sum of the parts, in rank
  // order; u[r] = rmsnorm(x[r]) * w. All ranks get the same bits. Can be
  // recorded. cols as in DeviceAddNorm.
  absl::Status AddNorm(int32_t rank, const GroupSum& sum);

  // Where columns are gathered: [gathered_max, columns.back()] in rank 0's
  // memory, which outlives all steps. Before the first of them.
  void GatherInto(float* rows);
  // Queues: each rank's columns go to rank 0, which waits for all of them; what
  // it queued before may read those that were there, what it queues next finds
  // these. By stores others wait for nobody, unless `again`; a long NCCL send
  // waits for rank 0. Can be recorded. Every rank queues it, also without
  // columns.
  absl::Status GatherColumns(int32_t rank, const GroupColumns& what);

  // End::number where columns are gathered.
  static constexpr int32_t kGathering = -1;
  // How a step ended for a rank.
  struct End {
    bool whole = true;    // else what was computed is to be thrown away
    int32_t missed = -1;  // the rank that did not come in time; -1: Abort
    int32_t number = 0;   // the sum at which it was waited for, or kGathering
  };
  // Waits for all that the rank queued. Errors are the device's.
  absl::StatusOr<End> Finish(int32_t rank);

  // Ends all waits of this step, now and to come. From any thread.
  void Abort();
  // After a step that was not whole, when no rank has work queued: the next
  // step may begin.
  absl::Status Reset();
  // What was recorded before this number changed cannot be launched any more.
  // All recordings are gone before the group.
  int64_t generation() const;

  struct Impl;

 private:
  explicit DeviceGroup(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::kernels
