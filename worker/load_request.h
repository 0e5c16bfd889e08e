// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/slice_part.h"
#include "common/delivery/content_hash.h"
#include "common/slices.h"
#include "conclave/v1/control.pb.h"

namespace conclave::worker {

struct WantedSlice {
  checkpoint::SliceLayout layout;
  std::optional<delivery::ContentHash> hash;  // if the coordinator knows it
};

struct WantedShard {
  Shard shard;
  std::vector<WantedSlice> slices;  // [shard.slices]
  int32_t first = 0;                // position of slices[0] over all shards
  uint64_t bytes = 0;
};

// An AssignRequest, checked.
struct LoadRequest {
  uint64_t generation = 0;
  uint64_t load = 0;
  std::string source;         // of one checkpoint of one coordinator
  std::string model;          // folder where the coordinator has it
  std::string config_sha256;  // hex
  ExpertShape shape;
  std::vector<WantedShard> shards;  // ascending id
  std::vector<v1::Peer> peers;
  bool verify_local = false;
  std::string activations;  // kernels::ParseActivations's words
};

// InvalidArgument: too many shards, wrong order, impossible shape or storage.
absl::StatusOr<LoadRequest> ParseAssign(const v1::AssignRequest& request);

}  // namespace conclave::worker
