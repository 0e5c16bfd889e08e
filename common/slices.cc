// SPDX-License-Identifier: Apache-2.0
#include "common/slices.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

absl::Status Invalid(const Shard& shard, const Slice& slice, std::string why) {
  return absl::InvalidArgumentError(absl::StrCat(
      "shard ", Index(shard.id), ", ", ToString(slice), ": ", why));
}

absl::Status CheckSlice(const Shard& shard,
                        const Slice& slice,
                        const ExpertShape& shape) {
  if (Index(slice.layer) < 0 || Index(slice.layer) >= shape.layers) {
    return Invalid(
        shard, slice, absl::StrCat("the model has ", shape.layers, " layers"));
  }
  if (Index(slice.expert) < 0 || Index(slice.expert) >= shape.experts) {
    return Invalid(shard,
                   slice,
                   absl::StrCat("the model has ", shape.experts, " experts"));
  }
  if (slice.begin < 0 || slice.end > shape.intermediate ||
      slice.begin >= slice.end) {
    return Invalid(
        shard,
        slice,
        absl::StrCat("columns must lie in [0, ", shape.intermediate, ")"));
  }
  const bool whole = slice.begin == 0 && slice.end == shape.intermediate;
  if (!whole && (slice.begin % shape.column_multiple != 0 ||
                 slice.end % shape.column_multiple != 0)) {
    return Invalid(
        shard,
        slice,
        absl::StrCat("columns cannot be cut there; begin and end must be "
                     "multiples of ",
                     shape.column_multiple));
  }
  return absl::OkStatus();
}

absl::Status CheckShard(const Shard& shard, const ExpertShape& shape) {
  for (size_t i = 0; i < shard.slices.size(); ++i) {
    const Slice& slice = shard.slices[i];
    RETURN_IF_ERROR(CheckSlice(shard, slice, shape));
    if (i == 0) continue;
    const Slice& before = shard.slices[i - 1];
    if (std::pair(before.layer, before.expert) >=
        std::pair(slice.layer, slice.expert)) {
      return Invalid(
          shard, slice, "slices must ascend by (layer, expert), each once");
    }
    if (before.layer == slice.layer && before.width() != slice.width()) {
      return Invalid(shard,
                     slice,
                     "all slices of one shard and layer must have one width");
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool IsPartOf(const Slice& slice, const ExpertShape& shape) {
  return Index(slice.layer) >= 0 && Index(slice.layer) < shape.layers &&
         Index(slice.expert) >= 0 && Index(slice.expert) < shape.experts &&
         slice.begin >= 0 && slice.begin < slice.end &&
         slice.end <= shape.intermediate;
}

std::string ToString(const Slice& slice) {
  return absl::StrCat("layer ",
                      Index(slice.layer),
                      ", expert ",
                      Index(slice.expert),
                      ", columns [",
                      slice.begin,
                      ", ",
                      slice.end,
                      ")");
}

absl::Status Validate(const Placement& placement, const ExpertShape& shape) {
  if (placement.shards.size() != placement.holder.size()) {
    return absl::InvalidArgumentError("placement: one holder per shard");
  }
  if (placement.shards.size() > static_cast<size_t>(limits::kShardsMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("placement: more than ", limits::kShardsMax, " shards"));
  }
  std::map<std::pair<LayerId, ExpertId>, std::vector<Slice>> held;
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    const Shard& shard = placement.shards[i];
    if (Index(shard.id) != static_cast<int32_t>(i)) {
      return absl::InvalidArgumentError(
          absl::StrCat("placement: shard ", i, " has id ", Index(shard.id)));
    }
    RETURN_IF_ERROR(CheckShard(shard, shape));
    for (const Slice& slice : shard.slices) {
      held[{slice.layer, slice.expert}].push_back(slice);
    }
  }
  for (int32_t layer = 0; layer < shape.layers; ++layer) {
    for (int32_t expert = 0; expert < shape.experts; ++expert) {
      auto& slices = held[{LayerId{layer}, ExpertId{expert}}];
      std::sort(slices.begin(), slices.end());
      int32_t column = 0;
      for (const Slice& slice : slices) {
        if (slice.begin != column) break;
        column = slice.end;
      }
      int32_t total = 0;
      for (const Slice& slice : slices) total += slice.width();
      if (column != shape.intermediate || total != shape.intermediate) {
        return absl::InvalidArgumentError(
            absl::StrCat("placement: layer ",
                         layer,
                         ", expert ",
                         expert,
                         ": every column must be held exactly once; column ",
                         column,
                         " is missing or held twice"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
