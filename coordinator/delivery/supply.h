// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/checkpoint/checkpoint.h"
#include "common/clock.h"
#include "conclave/v1/control.pb.h"
#include "coordinator/delivery/manifest.h"
#include "grpcpp/channel.h"

namespace conclave::delivery {

// The coordinator's checkpoint as the source of slices for workers
// (docs/contracts/delivery.md). Thread-safe.
class Supply {
 public:
  struct Options {
    std::string cache;    // folder of the manifest; empty: none
    int32_t streams = 4;  // slices under way to one worker
    // Slices in memory at once, for all workers together.
    uint64_t memory_bytes = uint64_t{192} << 20;
    Clock* clock = nullptr;
  };
  // What is pointed to outlives the supply.
  Supply(const checkpoint::Checkpoint* checkpoint, Options options);

  // Completes an assignment that names shards and slices: how they are stored,
  // their hashes where known, source and number of the load.
  absl::Status Describe(v1::AssignRequest* request);

  // Answers the wants of one load until it is destroyed; then what runs is
  // cancelled. The supply outlives it.
  class Session {
   public:
    ~Session();
    // From one thread.
    void Add(const v1::LoadProgress& news);

   private:
    friend class Supply;
    struct Impl;
    explicit Session(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
  };
  // `peer` stands in messages. `deadline`: for one frame to be taken.
  std::unique_ptr<Session> Open(const v1::AssignRequest& request,
                                const std::string& peer,
                                std::shared_ptr<grpc::Channel> channel,
                                absl::Duration deadline);

 private:
  // Waits for so much of memory_bytes; false: stopped before. One slice larger
  // than all of it passes alone.
  bool Acquire(uint64_t bytes, const std::atomic<bool>& stop);
  void Release(uint64_t bytes);

  const checkpoint::Checkpoint* const checkpoint_;
  const Options options_;
  Manifest manifest_;
  std::atomic<uint64_t> loads_{0};
  std::mutex mu_;
  std::condition_variable released_;
  uint64_t used_ = 0;  // guarded by mu_
};

}  // namespace conclave::delivery
