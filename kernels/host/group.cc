// SPDX-License-Identifier: Apache-2.0
// Ranks are threads; their parts lie in memory that all of them see.
#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "kernels/device_group.h"
#include "kernels/host/rows.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

constexpr size_t kBuffers = 2;
constexpr absl::Duration kPoll = absl::Microseconds(50);

struct Rank {
  DeviceQueue* queue = nullptr;
  std::vector<float> parts[kBuffers];  // [rows_max, cols]
  std::atomic<int64_t> sent = 0;       // sums since Reset
  std::atomic<int64_t> gathered = 0;   // the same of GatherColumns
  DeviceGroup::End end;                // of this step
};

bool HasPart(const GroupSum& sum, int32_t rank) {
  return sum.only < 0 || sum.only == rank;
}

}  // namespace

struct DeviceGroup::Impl {
  Options options;
  std::vector<Rank> ranks;
  float* rows = nullptr;  // rank 0's, of gathered columns
  std::atomic<bool> aborted = false;

  int32_t ColumnsOf(int32_t rank) const {
    if (options.columns.empty()) return 0;
    return options.columns[rank + 1] - options.columns[rank];
  }

  // Whether rank `whom` has come `count` times, as `came` says.
  bool Await(int32_t rank,
             int32_t whom,
             const std::atomic<int64_t>& came,
             int64_t count,
             int32_t number) {
    const absl::Time end = RealClock()->Now() + options.deadline;
    while (came.load(std::memory_order_acquire) < count) {
      if (aborted) {
        ranks[rank].end.whole = false;
        return false;
      }
      const absl::Time now = RealClock()->Now();
      if (now >= end) {
        ranks[rank].end = {.whole = false, .missed = whom, .number = number};
        aborted = true;
        return false;
      }
      RealClock()->SleepUntil(now + kPoll);
    }
    return true;
  }

  void Sum(int32_t rank, const GroupSum& sum) {
    Rank& own = ranks[rank];
    if (aborted) {
      own.end.whole = false;
      return;
    }
    const int64_t count = own.sent.load(std::memory_order_relaxed) + 1;
    const size_t buffer = static_cast<size_t>(count) % kBuffers;
    const auto cols = static_cast<size_t>(options.cols);
    for (int32_t r = 0; HasPart(sum, rank) && r < sum.rows; ++r) {
      host::PartOfRow(
          sum.part, sum.rows, r, {&own.parts[buffer][r * cols], cols});
    }
    own.sent.store(count, std::memory_order_release);
    for (int32_t k = 0; k < std::ssize(ranks); ++k) {
      if (!Await(rank, k, ranks[k].sent, count, sum.number)) return;
    }
    std::vector<float> all(cols);
    for (int32_t r = 0; r < sum.rows; ++r) {
      std::fill(all.begin(), all.end(), 0.0f);
      for (int32_t k = 0; k < std::ssize(ranks); ++k) {
        if (!HasPart(sum, k)) continue;
        const float* part = &ranks[k].parts[buffer][r * cols];
        for (size_t i = 0; i < cols; ++i) all[i] += part[i];
      }
      float* x = sum.x + r * cols;
      for (size_t i = 0; i < cols; ++i) x[i] += all[i];
      host::NormRow({x, cols}, sum.w, sum.eps, r, sum.u, sum.low);
    }
  }

  // Rank 0's rows may be overwritten at any time after a sum: to that it came
  // when it was done with them.
  void Gather(int32_t rank, const GroupColumns& what) {
    Rank& own = ranks[rank];
    if (aborted) {
      own.end.whole = false;
      return;
    }
    const int64_t count = own.gathered.load(std::memory_order_relaxed) + 1;
    if (rank == 0) {
      own.gathered.store(count, std::memory_order_release);
      for (int32_t k = 1; k < std::ssize(ranks); ++k) {
        if (ColumnsOf(k) == 0) continue;
        if (!Await(0, k, ranks[k].gathered, count, kGathering)) return;
      }
      return;
    }
    const std::atomic<int64_t>& ready = ranks[0].gathered;
    if (what.again && !Await(rank, 0, ready, count, kGathering)) return;
    const size_t columns = static_cast<size_t>(ColumnsOf(rank));
    const auto stride = static_cast<size_t>(options.columns.back());
    for (int32_t r = 0; r < what.rows; ++r) {
      std::copy_n(what.part + r * columns,
                  columns,
                  rows + r * stride + options.columns[rank]);
    }
    own.gathered.store(count, std::memory_order_release);
  }
};

absl::StatusOr<std::unique_ptr<DeviceGroup>> DeviceGroup::Create(
    std::span<DeviceQueue* const> queues, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->ranks = std::vector<Rank>(queues.size());
  for (size_t i = 0; i < queues.size(); ++i) {
    impl->ranks[i].queue = queues[i];
    for (std::vector<float>& part : impl->ranks[i].parts) {
      part.resize(static_cast<size_t>(options.rows_max) * options.cols);
    }
  }
  return std::unique_ptr<DeviceGroup>(new DeviceGroup(std::move(impl)));
}

uint64_t DeviceGroup::BytesOf(int32_t, int32_t, const Options& options) {
  return kBuffers * static_cast<uint64_t>(options.rows_max) * options.cols *
         sizeof(float);
}

DeviceGroup::DeviceGroup(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceGroup::~DeviceGroup() = default;

int32_t DeviceGroup::ranks() const {
  return static_cast<int32_t>(impl_->ranks.size());
}
const DeviceGroup::Options& DeviceGroup::options() const {
  return impl_->options;
}

int64_t DeviceGroup::generation() const { return 0; }

absl::Status DeviceGroup::AddNorm(int32_t rank, const GroupSum& sum) {
  CONCLAVE_CHECK_LE(sum.rows, impl_->options.rows_max);
  CONCLAVE_CHECK(sum.part.dense == nullptr || sum.part.pairs == nullptr);
  DeviceEntries entries;
  if (sum.part.entries != nullptr) entries = *sum.part.entries;
  host::StreamOf(impl_->ranks[rank].queue)
      ->Do([impl = impl_.get(), rank, sum, entries] {
        // The caller's entries need not live as long as a recorded step.
        GroupSum kept = sum;
        kept.part.entries = &entries;
        impl->Sum(rank, kept);
      });
  return absl::OkStatus();
}

void DeviceGroup::GatherInto(float* rows) { impl_->rows = rows; }

absl::Status DeviceGroup::GatherColumns(int32_t rank,
                                        const GroupColumns& what) {
  CONCLAVE_CHECK_LE(what.rows, impl_->options.gathered_max);
  if (impl_->ColumnsOf(rank) == 0) return absl::OkStatus();
  host::StreamOf(impl_->ranks[rank].queue)
      ->Do([impl = impl_.get(), rank, what] { impl->Gather(rank, what); });
  return absl::OkStatus();
}

absl::StatusOr<DeviceGroup::End> DeviceGroup::Finish(int32_t rank) {
  const absl::Status status = impl_->ranks[rank].queue->Wait();
  if (!status.ok()) return status;
  return impl_->ranks[rank].end;
}

void DeviceGroup::Abort() { impl_->aborted = true; }

absl::Status DeviceGroup::Reset() {
  for (Rank& rank : impl_->ranks) {
    rank.sent = 0;
    rank.gathered = 0;
    rank.end = {};
  }
  impl_->aborted = false;
  return absl::OkStatus();
}

}  // namespace conclave::kernels
