// SPDX-License-Identifier: Apache-2.0
// The sum over ranks by NCCL: all parts to all ranks, then the sum that a rank
// makes of planes of its own; columns by sends and receives. NCCL has no
// deadlines: the thread that waits for a rank's step looks at how far the
// others came.
#include <algorithm>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kernels/cuda/group.cuh"
#include "kernels/cuda/nccl_library.h"

namespace conclave::kernels::cuda {
namespace {

// A number that changes with each exchange that a rank comes to; `least`: who
// came to the fewest.
int64_t Passed(const DeviceGroup::Impl& group, int32_t* least) {
  int64_t all = 0;
  *least = 0;
  const volatile GroupWords::Rank* words = group.words->ranks;
  for (size_t i = 0; i < group.ranks.size(); ++i) {
    all += words[i].passed;
    const auto ahead =
        static_cast<int32_t>(static_cast<uint32_t>(words[i].passed) -
                             static_cast<uint32_t>(words[*least].passed));
    if (ahead < 0) *least = static_cast<int>(i);
  }
  return all;
}

void EndStep(DeviceGroup::Impl* group, int32_t rank, int32_t missed) {
  volatile GroupWords* words = group->words;
  words->ranks[rank].ended = 1;
  if (missed >= 0 && missed != rank && words->abort == 0) {
    words->ranks[rank].number = words->ranks[rank].last;
    words->ranks[rank].missed = 1 + missed;
  }
  words->abort = 1;
  AbortCommunicators(group);
}

// Columns of one rank as rank 0 receives them.
struct Received {
  int from = 0;
  size_t count = 0;
  float* to = nullptr;
};

// One row comes to where it belongs; several, one rank after the other.
std::vector<Received> ReceivedBy(const DeviceGroup::Impl& group, int32_t rows) {
  std::vector<Received> out;
  float* to = group.ranks[0].columns.as<float>();
  for (size_t from = 1; from < group.ranks.size(); ++from) {
    const size_t count =
        static_cast<size_t>(rows) * static_cast<size_t>(group.ColumnsOf(from));
    if (count == 0) continue;
    float* own = rows == 1 ? group.rows + group.options.columns[from] : to;
    out.push_back({.from = static_cast<int>(from), .count = count, .to = own});
    to += count;
  }
  return out;
}

// A connection between two ranks is made by what first goes over it, which
// cannot be recorded: a number of each rank to rank 0.
absl::Status Greet(DeviceGroup::Impl* group) {
  auto& first = group->ranks[0];
  RETURN_IF_ERROR(FromNccl(Nccl().group_start(), "beginning to connect"));
  absl::Status status;
  for (size_t i = 1; i < group->ranks.size(); ++i) {
    auto& rank = group->ranks[i];
    status.Update(
        FromNccl(Nccl().send(rank.part.as<float>(),
                             1,
                             ncclFloat32,
                             0,
                             static_cast<ncclComm_t>(rank.comm),
                             static_cast<cudaStream_t>(rank.queue->stream())),
                 "sending"));
    status.Update(FromNccl(
        Nccl().receive(first.part.as<float>(),
                       1,
                       ncclFloat32,
                       static_cast<int>(i),
                       static_cast<ncclComm_t>(first.comm),
                       static_cast<cudaStream_t>(first.queue->stream())),
        "receiving"));
  }
  status.Update(FromNccl(Nccl().group_end(), "connecting ranks"));
  return status;
}

}  // namespace

absl::Status MakeCommunicators(DeviceGroup::Impl* group) {
  if (const absl::Status there = Nccl().Check(); !there.ok()) {
    return absl::UnavailableError(
        absl::StrCat(there.message(), ", or use group_exchange: peer"));
  }
  std::vector<int> devices;
  for (const DeviceGroup::Impl::Rank& rank : group->ranks) {
    devices.push_back(rank.queue->device());
  }
  std::vector<ncclComm_t> comms(devices.size());
  RETURN_IF_ERROR(FromNccl(
      Nccl().init_all(
          comms.data(), static_cast<int>(devices.size()), devices.data()),
      "making communicators"));
  for (size_t i = 0; i < comms.size(); ++i) group->ranks[i].comm = comms[i];
  return Greet(group);
}

void AbortCommunicators(DeviceGroup::Impl* group) {
  std::vector<ncclComm_t> comms;
  for (DeviceGroup::Impl::Rank& rank : group->ranks) {
    std::lock_guard<std::mutex> lock(rank.mutex);
    if (rank.comm != nullptr) {
      comms.push_back(static_cast<ncclComm_t>(rank.comm));
    }
    rank.comm = nullptr;
  }
  if (comms.empty()) return;
  std::lock_guard<std::mutex> lock(group->aborting_mutex);
  group->aborting.emplace_back([comms] {
    // Together: the communicators of a process wait for each other.
    Nccl().group_start();
    for (ncclComm_t comm : comms) Nccl().abort(comm);
    Nccl().group_end();
  });
}

absl::Status QueueNcclSum(DeviceGroup::Impl* group,
                          int32_t rank,
                          const GroupSum& sum) {
  DeviceGroup::Impl::Rank& own = group->ranks[static_cast<size_t>(rank)];
  RETURN_IF_ERROR(QueuePart(group, rank, sum, own.part.as<float>()));
  const size_t count =
      static_cast<size_t>(sum.rows) * static_cast<size_t>(group->options.cols);
  const auto stream = static_cast<cudaStream_t>(own.queue->stream());
  {
    std::lock_guard<std::mutex> lock(own.mutex);
    const auto comm = static_cast<ncclComm_t>(own.comm);
    // The step has ended; what is queued no longer matters.
    if (comm == nullptr) return absl::OkStatus();
    RETURN_IF_ERROR(FromNccl(sum.only < 0
                                 ? Nccl().all_gather(own.part.as<float>(),
                                                     own.slots.as<float>(),
                                                     count,
                                                     ncclFloat32,
                                                     comm,
                                                     stream)
                                 : Nccl().broadcast(own.part.as<float>(),
                                                    own.slots.as<float>(),
                                                    count,
                                                    ncclFloat32,
                                                    sum.only,
                                                    comm,
                                                    stream),
                             "queueing rows"));
  }
  const DeviceAddend all{
      .dense = own.slots.as<float>(),
      .planes = sum.only < 0 ? static_cast<int32_t>(group->ranks.size()) : 1};
  return DeviceAddNorm(own.queue,
                       sum.rows,
                       group->options.cols,
                       all,
                       sum.w,
                       sum.eps,
                       nullptr,
                       sum.x,
                       sum.u,
                       sum.low);
}

absl::Status QueueNcclColumns(DeviceGroup::Impl* group,
                              int32_t rank,
                              const GroupColumns& what) {
  DeviceGroup::Impl::Rank& own = group->ranks[static_cast<size_t>(rank)];
  RETURN_IF_ERROR(QueueCame(group, rank));
  const auto stream = static_cast<cudaStream_t>(own.queue->stream());
  std::vector<Received> received;
  if (rank == 0) received = ReceivedBy(*group, what.rows);
  {
    std::lock_guard<std::mutex> lock(own.mutex);
    const auto comm = static_cast<ncclComm_t>(own.comm);
    if (comm == nullptr) return absl::OkStatus();
    RETURN_IF_ERROR(FromNccl(Nccl().group_start(), "beginning to gather"));
    absl::Status status;
    const size_t count = static_cast<size_t>(what.rows) *
                         group->ColumnsOf(static_cast<size_t>(rank));
    if (rank > 0 && count > 0) {
      status.Update(
          FromNccl(Nccl().send(what.part, count, ncclFloat32, 0, comm, stream),
                   "sending columns"));
    }
    for (const Received& r : received) {
      status.Update(FromNccl(
          Nccl().receive(r.to, r.count, ncclFloat32, r.from, comm, stream),
          "receiving columns"));
    }
    status.Update(FromNccl(Nccl().group_end(), "queueing columns"));
    RETURN_IF_ERROR(status);
  }
  for (const Received& r : received) {
    if (what.rows == 1) break;
    RETURN_IF_ERROR(QueuePlace(group, r.from, what.rows, r.to));
  }
  return absl::OkStatus();
}

absl::Status WaitForNccl(DeviceGroup::Impl* group, int32_t rank) {
  const auto stream = static_cast<cudaStream_t>(
      group->ranks[static_cast<size_t>(rank)].queue->stream());
  const volatile GroupWords* words = group->words;
  absl::Time since = RealClock()->Now();
  int32_t least = 0;
  int64_t passed = Passed(*group, &least);
  while (true) {
    const cudaError_t error = cudaStreamQuery(stream);
    if (error != cudaErrorNotReady) {
      if (words->abort != 0) EndStep(group, rank, -1);
      return ToStatus(error, "waiting for the device");
    }
    const int64_t now_passed = Passed(*group, &least);
    const absl::Time now = RealClock()->Now();
    if (now_passed != passed) {
      passed = now_passed;
      since = now;
    } else if (words->abort != 0 || now - since > group->options.deadline) {
      EndStep(group, rank, least);
    }
    std::this_thread::yield();
  }
}

}  // namespace conclave::kernels::cuda
