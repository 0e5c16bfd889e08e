// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/checkpoint/shard_weights.h"
#include "conclave/v1/control.pb.h"

namespace conclave::worker {

// What the coordinator of one generation wants this worker to hold. Immutable.
struct Assignment {
  uint64_t generation = 0;
  int32_t layers = 0;
  int32_t hidden = 0;
  std::map<ShardId, std::shared_ptr<const checkpoint::ShardWeights>> shards;
};

// The weights of a worker. Thread-safe; one Assign runs at a time, the others
// wait.
class ExpertStore {
 public:
  // `model`: folder to load from in place of the one that the coordinator
  // names; empty: that one.
  explicit ExpertStore(std::string model);

  // Loads the shards that are not there yet and drops the others. What was
  // there stays in use until the end, unless the shards change. Errors name
  // what is wrong with the request: other config.json, unknown layer, expert
  // or column, order. `progress` counts the bytes of all shards.
  absl::Status Assign(const v1::AssignRequest& request,
                      const checkpoint::LoadProgressFn& progress);

  // Null before the first Assign, and after a failed one.
  std::shared_ptr<const Assignment> current() const;
  uint64_t resident_bytes() const;

 private:
  const std::string model_;
  std::mutex assigning_;  // held for the whole of Assign
  std::string source_;    // folder and hash of what is loaded
  mutable std::mutex mu_;
  std::shared_ptr<const Assignment> current_;
};

}  // namespace conclave::worker
