// SPDX-License-Identifier: Apache-2.0
// Memory and faults of a group of GPUs; group.cu has the sums, group_gather.cu
// columns.
#include "kernels/cuda/group.cuh"

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace conclave::kernels {
namespace {

using cuda::kGroupBuffers;
using cuda::ToStatus;

// Lets `from` store into the memory of `to`.
absl::Status EnablePeer(int32_t from, int32_t to) {
  if (from == to) return absl::OkStatus();
  int can = 0;
  RETURN_IF_ERROR(ToStatus(cudaDeviceCanAccessPeer(&can, from, to),
                           "asking for peer access"));
  if (can == 0) {
    return absl::UnavailableError(
        absl::StrCat("GPU ",
                     from,
                     " cannot reach the memory of GPU ",
                     to,
                     "; use group_exchange: nccl"));
  }
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(from), "choosing the device"));
  const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
  if (error == cudaErrorPeerAccessAlreadyEnabled) {
    cudaGetLastError();  // not an error of the next call
    return absl::OkStatus();
  }
  return ToStatus(error, "enabling peer access");
}

absl::Status CheckSum(const DeviceGroup::Impl& group, const GroupSum& sum) {
  constexpr int32_t kUnit = 64;
  constexpr int32_t kColsMax = 8192;
  const int32_t cols = group.options.cols;
  if (cols % kUnit != 0 || cols > kColsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rows of ", cols, " on the GPU: a multiple of 64 up to ", kColsMax));
  }
  CONCLAVE_CHECK_LE(sum.rows, group.options.rows_max);
  CONCLAVE_CHECK(sum.part.dense == nullptr || sum.part.pairs == nullptr);
  return absl::OkStatus();
}

// Of other ranks' columns on their way into rank 0's rows, by NCCL.
uint64_t ColumnBytes(const DeviceGroup::Options& options) {
  if (options.columns.empty()) return 0;
  return static_cast<uint64_t>(options.gathered_max) *
         static_cast<uint64_t>(options.columns.back() - options.columns[1]) *
         sizeof(float);
}

absl::Status Empty(DeviceGroup::Impl* group) {
  constexpr uint8_t kEmptyByte = cuda::kEmpty & 0xff;
  for (DeviceGroup::Impl::Rank& rank : group->ranks) {
    RETURN_IF_ERROR(rank.queue->Fill(rank.slots, kEmptyByte));
    if (!group->nccl()) RETURN_IF_ERROR(rank.queue->Fill(rank.words, 0));
    RETURN_IF_ERROR(rank.queue->Wait());
  }
  *group->words = {};
  return absl::OkStatus();
}

}  // namespace

DeviceGroup::Impl::~Impl() {
  cuda::AbortCommunicators(this);
  for (std::thread& thread : aborting) thread.join();
  if (words != nullptr) cudaFreeHost(words);
}

absl::StatusOr<std::unique_ptr<DeviceGroup>> DeviceGroup::Create(
    std::span<DeviceQueue* const> queues, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->ranks = std::vector<Impl::Rank>(queues.size());
  if (queues.empty() || queues.size() > size_t{limits::kRanksMax}) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group of ", queues.size(), " GPUs"));
  }
  const size_t slot = impl->SlotFloats() * sizeof(float);
  const size_t slots =
      queues.size() * (impl->nccl() ? 1 : size_t{kGroupBuffers});
  for (size_t i = 0; i < queues.size(); ++i) {
    Impl::Rank& rank = impl->ranks[i];
    rank.queue = queues[i];
    ASSIGN_OR_RETURN(rank.slots,
                     rank.queue->Allocate(slots * slot, "rows of other GPUs"));
    if (impl->nccl()) {
      ASSIGN_OR_RETURN(rank.part,
                       rank.queue->Allocate(slot, "rows for other GPUs"));
      if (i > 0) continue;
      ASSIGN_OR_RETURN(
          rank.columns,
          rank.queue->Allocate(ColumnBytes(options), "other GPUs' columns"));
      continue;
    }
    ASSIGN_OR_RETURN(
        rank.words,
        rank.queue->Allocate(sizeof(cuda::RankWords), "a group's words"));
    for (DeviceQueue* const other : queues) {
      RETURN_IF_ERROR(EnablePeer(rank.queue->device(), other->device()));
    }
  }
  void* words = nullptr;
  RETURN_IF_ERROR(
      ToStatus(cudaHostAlloc(&words,
                             sizeof(cuda::GroupWords),
                             cudaHostAllocPortable | cudaHostAllocMapped),
               "allocating host memory"));
  impl->words = static_cast<cuda::GroupWords*>(words);
  RETURN_IF_ERROR(Empty(impl.get()));
  if (impl->nccl()) RETURN_IF_ERROR(cuda::MakeCommunicators(impl.get()));
  return std::unique_ptr<DeviceGroup>(new DeviceGroup(std::move(impl)));
}

uint64_t DeviceGroup::BytesOf(int32_t ranks,
                              int32_t rank,
                              const Options& options) {
  const auto count = static_cast<uint64_t>(ranks);
  const bool nccl = options.exchange == GroupExchange::kNccl;
  const uint64_t slots = nccl ? count + 1 : count * kGroupBuffers;
  return slots * static_cast<uint64_t>(options.rows_max) * options.cols *
             sizeof(float) +
         (nccl && rank == 0 ? ColumnBytes(options) : 0);
}

DeviceGroup::DeviceGroup(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceGroup::~DeviceGroup() = default;

int32_t DeviceGroup::ranks() const {
  return static_cast<int32_t>(impl_->ranks.size());
}
const DeviceGroup::Options& DeviceGroup::options() const {
  return impl_->options;
}
int64_t DeviceGroup::generation() const { return impl_->generation; }

absl::Status DeviceGroup::AddNorm(int32_t rank, const GroupSum& sum) {
  RETURN_IF_ERROR(CheckSum(*impl_, sum));
  return impl_->nccl() ? cuda::QueueNcclSum(impl_.get(), rank, sum)
                       : cuda::QueuePeerSum(impl_.get(), rank, sum);
}

void DeviceGroup::GatherInto(float* rows) { impl_->rows = rows; }

absl::Status DeviceGroup::GatherColumns(int32_t rank,
                                        const GroupColumns& what) {
  CONCLAVE_CHECK_LE(what.rows, impl_->options.gathered_max);
  if (impl_->nccl()) return cuda::QueueNcclColumns(impl_.get(), rank, what);
  if (impl_->ColumnsOf(static_cast<size_t>(rank)) == 0) {
    return absl::OkStatus();
  }
  return cuda::QueuePeerColumns(impl_.get(), rank, what);
}

absl::StatusOr<DeviceGroup::End> DeviceGroup::Finish(int32_t rank) {
  RETURN_IF_ERROR(impl_->nccl()
                      ? cuda::WaitForNccl(impl_.get(), rank)
                      : impl_->ranks[static_cast<size_t>(rank)].queue->Wait());
  const volatile cuda::GroupWords::Rank& words = impl_->words->ranks[rank];
  return End{.whole = words.ended == 0,
             .missed = words.missed - 1,
             .number = words.number};
}

void DeviceGroup::Abort() {
  static_cast<volatile cuda::GroupWords*>(impl_->words)->abort = 1;
  if (impl_->nccl()) cuda::AbortCommunicators(impl_.get());
}

absl::Status DeviceGroup::Reset() {
  RETURN_IF_ERROR(Empty(impl_.get()));
  if (!impl_->nccl()) return absl::OkStatus();
  cuda::AbortCommunicators(impl_.get());
  ++impl_->generation;
  return cuda::MakeCommunicators(impl_.get());
}

}  // namespace conclave::kernels
