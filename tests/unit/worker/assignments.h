// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "common/checkpoint/checkpoint.h"
#include "common/delivery/storage_proto.h"
#include "common/slices.h"
#include "conclave/v1/control.pb.h"

namespace conclave::testing {

inline constexpr char kTinyModel[] = "deploy/models/qwen3.5-moe-tiny";

// Experts [begin, end) of every layer, columns [from, to).
inline Shard MakeShard(const checkpoint::ModelConfig& config,
                       int32_t id,
                       int32_t begin,
                       int32_t end,
                       int32_t from,
                       int32_t to) {
  Shard shard;
  shard.id = static_cast<ShardId>(id);
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (int32_t expert = begin; expert < end; ++expert) {
      shard.slices.push_back({.layer = static_cast<LayerId>(layer),
                              .expert = static_cast<ExpertId>(expert),
                              .begin = from,
                              .end = to});
    }
  }
  return shard;
}

inline v1::AssignRequest MakeAssign(const checkpoint::ModelConfig& config,
                                    uint64_t generation,
                                    const std::vector<Shard>& shards) {
  v1::AssignRequest request;
  request.set_generation(generation);
  request.set_model(kTinyModel);
  request.set_config_hash(absl::HexStringToBytes(config.config_sha256));
  for (const Shard& shard : shards) {
    v1::ShardAssignment* to = request.add_shards();
    to->set_shard(Index(shard.id));
    for (const Slice& slice : shard.slices) {
      v1::SliceAssignment* s = to->add_slices();
      s->set_layer(Index(slice.layer));
      s->set_expert(Index(slice.expert));
      s->set_begin(slice.begin);
      s->set_end(slice.end);
    }
  }
  const auto tiny = *checkpoint::Checkpoint::Open(kTinyModel);
  // Wrong slices on purpose are described as far as they can be.
  const absl::Status described = delivery::DescribeSlices(*tiny, &request);
  static_cast<void>(described);
  return request;
}

}  // namespace conclave::testing
