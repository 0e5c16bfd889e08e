// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/limits.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/device_group.h"

namespace conclave::kernels::cuda {

// Words in host memory that all devices and threads of a group see.
struct GroupWords {
  int32_t abort;  // not 0: every wait ends
  struct Rank {
    int32_t missed;  // 1 + the rank that did not come; 0: none
    int32_t number;  // the exchange at which, as DeviceGroup::End has it
    int32_t ended;   // not 0: this rank's step is not whole
    int32_t passed;  // NCCL: exchanges that it came to; wraps around
    int32_t last;    // NCCL: the number of the last one
  } ranks[limits::kRanksMax];
};

// Words in a rank's device memory, of groups by peer stores; 0 after Reset.
// Counts of gatherings wrap around.
struct RankWords {
  int32_t ended;     // not 0: this step's waits have ended
  int32_t blocks;    // of a kernel under way, those that have stored
  int32_t gathered;  // gatherings of columns that this rank came to
  int32_t ready;     // those that rank 0 is ready for
  // Rank 0's: those whose columns of each rank are there.
  int32_t arrived[limits::kRanksMax];
};

constexpr int kGroupBuffers = 2;
// What an empty slot holds: a NaN that no sum gives; sums' own NaNs become
// another one.
constexpr uint32_t kEmpty = 0xffffffffu;

// One rank's sum by stores into the other ranks' memory.
absl::Status QueuePeerSum(DeviceGroup::Impl* group,
                          int32_t rank,
                          const GroupSum& sum);
// The same by NCCL.
absl::Status QueueNcclSum(DeviceGroup::Impl* group,
                          int32_t rank,
                          const GroupSum& sum);
// A rank's part into a row of its own, and the word that it came.
absl::Status QueuePart(DeviceGroup::Impl* group,
                       int32_t rank,
                       const GroupSum& sum,
                       float* to);

// Columns of every rank to rank 0 by stores into its memory.
absl::Status QueuePeerColumns(DeviceGroup::Impl* group,
                              int32_t rank,
                              const GroupColumns& what);
// The same by NCCL.
absl::Status QueueNcclColumns(DeviceGroup::Impl* group,
                              int32_t rank,
                              const GroupColumns& what);
// The word that a rank came to a gathering of columns.
absl::Status QueueCame(DeviceGroup::Impl* group, int32_t rank);
// Rank `of`'s columns, [rows, its columns] in rank 0's memory, into its rows.
absl::Status QueuePlace(DeviceGroup::Impl* group,
                        int32_t of,
                        int32_t rows,
                        const float* from);

// Unavailable: NCCL is not there; the message says what to do.
absl::Status MakeCommunicators(DeviceGroup::Impl* group);
// Ends what they do; then there are none. From any thread. NCCL gives their
// memory back, in a thread of its own, when the last recording with them is
// gone.
void AbortCommunicators(DeviceGroup::Impl* group);
// Until the rank's queue is done; ends the group's step at the deadline.
absl::Status WaitForNccl(DeviceGroup::Impl* group, int32_t rank);

}  // namespace conclave::kernels::cuda

namespace conclave::kernels {

struct DeviceGroup::Impl {
  struct Rank {
    DeviceQueue* queue = nullptr;
    // Peer: [buffers, ranks, rows_max, cols], what each rank sent. NCCL:
    // [ranks, rows_max, cols].
    DeviceBuffer slots;
    DeviceBuffer words;  // peer: RankWords
    DeviceBuffer part;   // NCCL: [rows_max, cols]
    // NCCL, rank 0's: other ranks' columns, one rank after the other, each
    // [rows, its columns].
    DeviceBuffer columns;
    std::mutex mutex;      // of comm, which another thread may abort
    void* comm = nullptr;  // ncclComm_t
  };
  ~Impl();

  size_t SlotFloats() const {
    return static_cast<size_t>(options.rows_max) *
           static_cast<size_t>(options.cols);
  }
  int32_t ColumnsOf(size_t rank) const {
    if (options.columns.empty()) return 0;
    return options.columns[rank + 1] - options.columns[rank];
  }
  bool nccl() const { return options.exchange == GroupExchange::kNccl; }

  Options options;
  std::vector<Rank> ranks;
  cuda::GroupWords* words = nullptr;
  float* rows = nullptr;  // rank 0's, of gathered columns
  int64_t generation = 0;
  std::mutex aborting_mutex;
  std::vector<std::thread> aborting;  // of communicators
};

}  // namespace conclave::kernels
