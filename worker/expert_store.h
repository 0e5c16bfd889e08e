// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
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
#include "absl/time/time.h"
#include "common/buffer.h"
#include "common/checkpoint/shard_weights.h"
#include "common/clock.h"
#include "common/delivery/slice_cache.h"
#include "common/memory.h"
#include "conclave/v1/control.pb.h"
#include "kernels/context.h"
#include "worker/delivery_inbox.h"
#include "worker/expert_device.h"
#include "worker/shard_loader.h"

namespace conclave::worker {

// What the coordinator of one generation wants this worker to hold. Immutable.
struct Assignment {
  uint64_t generation = 0;
  int32_t layers = 0;
  int32_t hidden = 0;
  kernels::Activations activations = kernels::Activations::kF32;
  // Slices whose hash is known.
  std::map<delivery::ContentHash, std::pair<HeldShard*, size_t>> contents;
  std::map<ShardId, std::shared_ptr<HeldShard>> held;
};

// The weights of a worker. Thread-safe; one Assign runs at a time: a new one
// stops the one that runs.
class ExpertStore {
 public:
  struct Options {
    // Checkpoint folder that the operator states; empty: `hint`, or the
    // coordinator's path, if one of them is a folder here; "off": none.
    std::string model;
    std::string hint;
    delivery::SliceCache* cache = nullptr;  // outlives the store; null: none
    DialFn dial = nullptr;                  // of peers; null: none are asked
    Clock* clock = RealClock();
    std::function<MemoryState()> memory = MemoryNow;
    // Where the experts go; outlives the store; null: they stay in memory.
    ExpertDevice* device = nullptr;
    // For the coordinator, and for a peer, to send something.
    absl::Duration deadline = absl::Seconds(20);
    absl::Duration peer_deadline = absl::Seconds(5);
  };
  explicit ExpertStore(Options options);

  // Loads the slices that are not there yet (worker/shard_loader.h) and drops
  // the others. What was there stays in use until the end, unless the shards
  // change; what a failed or stopped load brought is kept for the next.
  // `report` gets the bytes of the shards that were not whole, and what the
  // worker wants of the coordinator. Errors name what is wrong: another
  // config.json or other weights in a stated folder, unknown layer, expert or
  // column, order, too little memory (ResourceExhausted with both numbers, of
  // the device too, before anything is read).
  absl::Status Assign(const v1::AssignRequest& request,
                      const LoadReportFn& report);

  // Ends a load that runs, and later ones, with Cancelled.
  void Stop();

  // Null before the first Assign, and after a failed one.
  std::shared_ptr<const Assignment> current() const;
  uint64_t resident_bytes() const;

  // For Deliver frames.
  DeliveryInbox* inbox() { return &inbox_; }

  // For other workers: in host memory or in the cache. What went to a device
  // is read from the cache alone.
  bool Holds(const delivery::ContentHash& hash) const;
  // NotFound, OutOfRange.
  absl::StatusOr<Buffer> ReadHeld(const delivery::ContentHash& hash,
                                  uint64_t offset,
                                  uint64_t length) const;

 private:
  struct Next;
  absl::Status Load(const LoadRequest& request, const LoadReportFn& report);
  // What is there of the wanted shards; the rest gets room.
  absl::Status Prepare(const LoadRequest& request, Next* next);
  // `needed` bytes beside the `held` ones that are freed or part of them.
  absl::Status CheckFits(const LoadRequest& request,
                         uint64_t needed,
                         uint64_t held) const;
  uint64_t BytesOf(const HeldShard& held) const;
  absl::StatusOr<std::shared_ptr<HeldShard>> NewShard(
      const LoadRequest& request, const WantedShard& wanted) const;
  absl::Status Fill(const LoadRequest& request,
                    const LoadReportFn& report,
                    const checkpoint::Checkpoint* local,
                    std::span<HeldShard* const> shards);
  std::shared_ptr<HeldShard> Reusable(const LoadRequest& request,
                                      const WantedShard& wanted) const;
  absl::StatusOr<std::unique_ptr<checkpoint::Checkpoint>> LocalCopy(
      const LoadRequest& request) const;

  const Options options_;
  std::atomic<bool> stop_{false};  // this Assign shall end
  DeliveryInbox inbox_;
  std::atomic<bool> stopped_{false};  // all shall
  std::atomic<int> waiting_{0};
  std::mutex assigning_;  // held for the whole of Assign
  // Guarded by assigning_: what an unfinished load left, and of which source
  // and config.json all of it is.
  std::map<ShardId, std::shared_ptr<HeldShard>> unfinished_;
  std::string source_, config_sha256_;
  mutable std::mutex mu_;
  std::shared_ptr<const Assignment> current_;
};

}  // namespace conclave::worker
