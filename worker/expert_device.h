// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/memory.h"
#include "kernels/device_matrix.h"
#include "kernels/device_queue.h"
#include "worker/load_request.h"
#include "worker/pair_plan.h"
#include "worker/shard_sums.h"

namespace conclave::worker {

// The GPU that holds a worker's experts and computes their sums. Thread-safe:
// loads and sums take turns, a layer or a shard each.
class ExpertDevice final : public ShardSums {
 public:
  // Of one piece of a frame: rows of a shard, their pairs. More rows are
  // computed piece by piece.
  static constexpr int32_t kRowsMax = 2048;
  static constexpr int32_t kPairsMax = 16384;

  struct Options {
    std::string name;  // "GPU 0 (NVIDIA H200)", in every error
    std::function<absl::StatusOr<MemoryState>()> memory;  // of the GPU
    int32_t rows_max = kRowsMax;
    int32_t pairs_max = kPairsMax;  // at least a row's
  };
  ExpertDevice(std::unique_ptr<kernels::DeviceQueue> queue, Options options);

  // The GPU that a machine counts so, `name` as above.
  static absl::StatusOr<std::unique_ptr<ExpertDevice>> Create(
      int32_t gpu, const std::string& name);

  const std::string& name() const { return options_.name; }
  int32_t number() const { return queue_->device(); }
  int32_t pairs_max() const { return options_.pairs_max; }

  // As it was asked last; zeros before.
  MemoryState memory() const;
  absl::StatusOr<MemoryState> AskMemory();

  // Bytes of a shard's experts on the device. InvalidArgument names a shard and
  // layer whose format has no form there.
  static absl::StatusOr<uint64_t> BytesOf(const WantedShard& wanted);

  // What buffers of a piece are made for.
  struct Room {
    int32_t hidden = 0;
    int32_t width = 0;   // of the widest slice
    bool exact = false;  // everything in float32
  };
  // ResourceExhausted with both numbers where `needed` bytes of experts and
  // these buffers do not fit into what is free and `held` bytes that are freed
  // or are part of `needed`. InvalidArgument: rows of a width that the device
  // cannot sum.
  absl::Status CheckFits(uint64_t needed, uint64_t held, const Room& room);
  // Makes the buffers, never smaller than before.
  absl::Status Reserve(const Room& room);

  // Takes a layer, all of whose slices are in host memory, to the device and
  // frees it there.
  absl::Status Load(HeldShard* held, size_t layer);

  // FailedPrecondition: without Reserve. Rows are rounded to bf16 unless
  // activations are kF32: then everything is float32. A row's bits depend on
  // other rows as far as kernels/device_product.h says.
  absl::Status Sum(const ShardWork& work, std::span<float> out) override;

  // Unavailable, for good, after an error of the device other than out of
  // memory: names the GPU and the call.
  absl::Status Health() const;

 private:
  struct Sizes {
    uint64_t x, wide, hidden, y, out, words;
    uint64_t sum() const { return x + wide + hidden + y + out + words; }
  };
  Sizes SizesFor(const Room& room) const;
  Room Larger(const Room& room) const;
  absl::Status Told(const absl::Status& status);
  absl::Status MakeBuffers(const Room& room);
  absl::Status Move(HeldShard* held, size_t layer);
  absl::Status UploadRows(const ShardWork& work, int32_t begin, int32_t end);
  absl::Status SumPiece(const ShardWork& work,
                        int32_t begin,
                        int32_t end,
                        std::span<float> out);
  absl::Status SumAll(const ShardWork& work, std::span<float> out);

  const Options options_;
  const std::unique_ptr<kernels::DeviceQueue> queue_;
  std::mutex mu_;  // guards the queue and what follows
  kernels::MatrixLoader loader_;
  Room room_;
  kernels::DeviceBuffer x_, wide_, hidden_, y_, out_, words_;
  std::vector<std::byte> rows_;  // on their way up
  PairPlan plan_;
  mutable std::mutex state_mu_;  // guards what follows
  absl::Status lost_;
  MemoryState memory_;
};

// Takes layers to the device as their last slices come. Thread-safe.
class LayerMover {
 public:
  // Counts what is not done yet.
  LayerMover(ExpertDevice* device, std::span<HeldShard* const> shards);
  // A slice is in host memory; it is not marked as done yet. After an error it
  // must not be.
  absl::Status Arrived(HeldShard* held, size_t slice);

 private:
  ExpertDevice* const device_;
  std::mutex mu_;
  std::map<std::pair<HeldShard*, size_t>, int32_t> missing_;
};

}  // namespace conclave::worker
