// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/delivery/content_hash.h"
#include "common/delivery/slice_cache.h"
#include "conclave/v1/control.pb.h"
#include "worker/delivery_inbox.h"
#include "worker/held_shard.h"
#include "worker/load_request.h"
#include "worker/peer_source.h"

namespace conclave::worker {

using LoadReportFn = std::function<void(const v1::LoadProgress& progress)>;

// Fills shards slice by slice, several at once. A slice comes from the local
// checkpoint, else the cache, else a peer, else the coordinator, and is checked
// against the coordinator's hash: always where it comes from elsewhere, by
// sample (or whole, if asked) where it is a local copy.
class ShardLoader {
 public:
  struct Parts {
    const LoadRequest* request = nullptr;
    const checkpoint::Checkpoint* local = nullptr;  // null: no copy here
    bool local_is_stated = false;  // by the operator: differing is an error
    delivery::SliceCache* cache = nullptr;  // null: none
    PeerSource* peers = nullptr;            // null: none
    DeliveryInbox* inbox = nullptr;
    const std::atomic<bool>* stop = nullptr;  // set: end with Cancelled
    absl::Duration deadline;  // for the coordinator to send something
    LoadReportFn report;      // called by one thread at a time
    // A slice is in memory, before it is marked as done; null: nothing to do.
    // Called by several threads at once.
    std::function<absl::Status(HeldShard* held, size_t slice)> arrived;
  };
  // What is pointed to outlives the loader.
  ShardLoader(Parts parts, std::span<HeldShard* const> shards);

  // Loads what is not done. What is done stays done after an error, for the
  // next loader.
  absl::Status Run();

 private:
  // One slice that is not done.
  struct Task {
    HeldShard* held;
    const WantedShard* shard;
    size_t i;  // in the shard
  };
  enum class Source { kLocal, kCache, kPeer, kCoordinator };

  absl::Status CheckLocalCopy();
  void AskPeers();
  absl::Status Load(const Task& task);
  absl::StatusOr<Source> Fill(const Task& task);
  absl::Status ReadLocal(const Task& task);
  bool FromCacheOrPeers(const Task& task, Source* source);
  absl::StatusOr<delivery::ContentHash> AskHash(const Task& task);
  absl::Status FromCoordinator(const Task& task);
  absl::StatusOr<bool> Receive(const Task& task);
  void Keep(const Task& task);
  void Want(const Task& task, bool hash_only);
  absl::Status Done(const Task& task, Source source);

  int32_t Position(const Task& task) const {
    return task.shard->first + static_cast<int32_t>(task.i);
  }
  // Whoever assigned answers wants.
  bool IsDelivered() const { return parts_.request->load != 0; }
  std::string Label(const Task& task) const;
  std::optional<delivery::ContentHash>& HashOfTask(const Task& task) {
    return task.held->hashes[task.i];
  }

  Parts parts_;
  std::vector<Task> tasks_;
  std::atomic<bool> cache_works_{true};
  bool cache_is_empty_ = true;
  std::mutex mu_;  // guards progress_ and the calls of report
  v1::LoadProgress progress_;
};

}  // namespace conclave::worker
