// SPDX-License-Identifier: Apache-2.0
#include "worker/expert_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::worker {
namespace {

absl::StatusOr<std::vector<Shard>> ParseShards(
    const v1::AssignRequest& request) {
  if (request.shards_size() > limits::kShardsMax) {
    return absl::InvalidArgumentError(absl::StrCat("assign: ",
                                                   request.shards_size(),
                                                   " shards, the limit is ",
                                                   limits::kShardsMax));
  }
  std::vector<Shard> shards;
  int32_t last = -1;
  for (const v1::ShardAssignment& from : request.shards()) {
    if (from.shard() <= last || from.shard() >= limits::kShardsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("assign: shard ", from.shard(), " after ", last));
    }
    last = from.shard();
    Shard& shard = shards.emplace_back();
    shard.id = static_cast<ShardId>(from.shard());
    for (const v1::SliceAssignment& slice : from.slices()) {
      shard.slices.push_back({.layer = static_cast<LayerId>(slice.layer()),
                              .expert = static_cast<ExpertId>(slice.expert()),
                              .begin = slice.begin(),
                              .end = slice.end()});
    }
  }
  return shards;
}

// Bytes that the shards will have, so that progress knows its end.
absl::StatusOr<uint64_t> ExpectedBytes(const checkpoint::Checkpoint& checkpoint,
                                       const std::vector<Shard>& shards) {
  uint64_t bytes = 0;
  for (const Shard& shard : shards) {
    ASSIGN_OR_RETURN(const uint64_t one,
                     checkpoint::ShardBytes(checkpoint, shard));
    bytes += one;
  }
  return bytes;
}

}  // namespace

ExpertStore::ExpertStore(std::string model) : model_(std::move(model)) {}

absl::Status ExpertStore::Assign(const v1::AssignRequest& request,
                                 const checkpoint::LoadProgressFn& progress) {
  const std::lock_guard<std::mutex> one_at_a_time(assigning_);
  const std::string folder = model_.empty() ? request.model() : model_;
  ASSIGN_OR_RETURN(const std::vector<Shard> shards, ParseShards(request));
  ASSIGN_OR_RETURN(const auto checkpoint, checkpoint::Checkpoint::Open(folder));
  const std::string& hash = checkpoint->config().config_sha256;
  if (absl::BytesToHexString(request.config_hash()) != hash) {
    return absl::FailedPreconditionError(
        absl::StrCat("assign: config.json in ",
                     folder,
                     " is not the coordinator's (SHA-256 ",
                     hash.substr(0, 12),
                     "... here); give both sides the same checkpoint"));
  }
  const std::string source = absl::StrCat(folder, "\n", hash);
  auto next = std::make_shared<Assignment>();
  next->generation = request.generation();
  next->layers = checkpoint->config().num_hidden_layers;
  next->hidden = checkpoint->config().hidden_size;
  bool changed = false;
  std::vector<Shard> missing;
  {
    const auto before = current();
    for (const Shard& shard : shards) {
      if (before != nullptr && source == source_) {
        const auto it = before->shards.find(shard.id);
        if (it != before->shards.end() &&
            it->second->shard.slices == shard.slices) {
          next->shards.insert(*it);
          continue;
        }
      }
      missing.push_back(shard);
    }
    changed = before != nullptr && before->shards.size() != next->shards.size();
  }
  if (changed || !missing.empty()) {
    // Room for the new ones comes first.
    const std::lock_guard<std::mutex> lock(mu_);
    current_ = nullptr;
  }
  source_ = source;
  ASSIGN_OR_RETURN(const uint64_t total, ExpectedBytes(*checkpoint, missing));
  uint64_t loaded = 0;
  for (const Shard& shard : missing) {
    const auto report = [&](uint64_t done, uint64_t /*of_this_shard*/) {
      if (progress) progress(loaded + done, std::max(total, loaded + done));
    };
    ASSIGN_OR_RETURN(checkpoint::ShardWeights weights,
                     checkpoint::LoadShard(*checkpoint, shard, report));
    loaded += weights.bytes;
    next->shards[shard.id] =
        std::make_shared<checkpoint::ShardWeights>(std::move(weights));
  }
  const std::lock_guard<std::mutex> lock(mu_);
  current_ = std::move(next);
  return absl::OkStatus();
}

std::shared_ptr<const Assignment> ExpertStore::current() const {
  const std::lock_guard<std::mutex> lock(mu_);
  return current_;
}

uint64_t ExpertStore::resident_bytes() const {
  const auto assignment = current();
  uint64_t bytes = 0;
  if (assignment == nullptr) return 0;
  for (const auto& [id, shard] : assignment->shards) bytes += shard->bytes;
  return bytes;
}

}  // namespace conclave::worker
