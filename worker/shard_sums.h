// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/dtype.h"
#include "common/thread_pool.h"
#include "kernels/context.h"
#include "kernels/moe.h"
#include "worker/held_shard.h"

namespace conclave::worker {

// What one shard has to do of one frame. Everything was checked: slices and
// rows exist, entries ascend by (slice, row), no pair twice.
struct ShardWork {
  const HeldShard* shard = nullptr;
  size_t layer = 0;
  int32_t hidden = 0;
  kernels::Activations activations = kernels::Activations::kF32;
  std::span<const std::byte> x;    // of the frame: [any, hidden]
  DType dtype = DType::kF32;       // of x: kF32 or kBF16
  std::span<const int32_t> rows;   // of x that have entries, ascending
  kernels::ExpertEntries entries;  // their rows are positions in `rows`
};

// What computes the partial sums of a shard. Used by one thread.
class ShardSums {
 public:
  virtual ~ShardSums() = default;

  // out[i] = the sum of row rows[i], as kernels/moe.h : ExpertFfn has it;
  // [rows.size(), hidden]. There is at least one row.
  virtual absl::Status Sum(const ShardWork& work, std::span<float> out) = 0;
};

// On the CPU, from weights in host memory. What is pointed to outlives it.
class HostShardSums final : public ShardSums {
 public:
  HostShardSums(kernels::Backend backend, ThreadPool* pool);
  absl::Status Sum(const ShardWork& work, std::span<float> out) override;

 private:
  kernels::Workspace workspace_;
  kernels::Context context_;
};

// Row `row` of the frame as float32.
void WidenRow(const ShardWork& work, int32_t row, std::span<float> to);

}  // namespace conclave::worker
