// SPDX-License-Identifier: Apache-2.0
#include "worker/load_request.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/delivery/storage_proto.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::worker {
namespace {

absl::StatusOr<ExpertShape> ParseShape(const v1::ModelShape& from) {
  const auto within = [](int32_t value, int32_t max) {
    return value > 0 && value <= max;
  };
  if (!within(from.layers(), limits::kLayersMax) ||
      !within(from.experts(), limits::kExpertsMax) ||
      !within(from.intermediate(), limits::kHiddenMax) ||
      !within(from.hidden(), limits::kHiddenMax)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "assign: no model has the shape {", from.ShortDebugString(), "}"));
  }
  return ExpertShape{.layers = from.layers(),
                     .experts = from.experts(),
                     .intermediate = from.intermediate(),
                     .hidden = from.hidden()};
}

absl::StatusOr<WantedSlice> ParseSlice(const v1::AssignRequest& request,
                                       const ExpertShape& shape,
                                       const v1::SliceAssignment& from) {
  if (from.storage() < 0 || from.storage() >= request.storages_size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "assign: there is no storage ", from.storage(), " in the request"));
  }
  const Slice slice = delivery::FromProto(from);
  if (!IsPartOf(slice, shape)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "assign: ", ToString(slice), ": is not part of the model"));
  }
  WantedSlice out;
  ASSIGN_OR_RETURN(
      out.layout,
      delivery::FromProto(
          request.storages(from.storage()), slice.width(), shape.hidden));
  if (!from.sha256().empty()) {
    out.hash = delivery::HashFromBytes(from.sha256());
    if (!out.hash.has_value()) {
      return absl::InvalidArgumentError("assign: a hash has not 32 bytes");
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<LoadRequest> ParseAssign(const v1::AssignRequest& request) {
  if (request.shards_size() > limits::kShardsMax) {
    return absl::InvalidArgumentError(absl::StrCat("assign: ",
                                                   request.shards_size(),
                                                   " shards, the limit is ",
                                                   limits::kShardsMax));
  }
  LoadRequest out;
  ASSIGN_OR_RETURN(out.shape, ParseShape(request.shape()));
  out.generation = request.generation();
  out.load = request.load();
  out.source = request.source();
  out.model = request.model();
  out.config_sha256 = absl::BytesToHexString(request.config_hash());
  out.peers.assign(request.peers().begin(), request.peers().end());
  out.verify_local = request.verify_local();
  out.activations = request.activations();
  int32_t last = -1, slices = 0;
  for (const v1::ShardAssignment& from : request.shards()) {
    if (from.shard() <= last || from.shard() >= limits::kShardsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("assign: shard ", from.shard(), " after ", last));
    }
    last = from.shard();
    WantedShard& to = out.shards.emplace_back();
    to.shard.id = static_cast<ShardId>(from.shard());
    to.first = slices;
    slices += from.slices_size();
    for (const v1::SliceAssignment& slice : from.slices()) {
      to.shard.slices.push_back(delivery::FromProto(slice));
      ASSIGN_OR_RETURN(WantedSlice wanted,
                       ParseSlice(request, out.shape, slice));
      to.bytes += wanted.layout.bytes();
      to.slices.push_back(std::move(wanted));
    }
  }
  return out;
}

}  // namespace conclave::worker
