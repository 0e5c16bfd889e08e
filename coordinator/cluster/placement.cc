// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::cluster {
namespace {

struct Holder {
  WorkerId id = kCoordinator;
  std::string name = "coordinator";
  double share = 1;
};

struct Range {
  int32_t begin = 0;
  int32_t end = 0;
};

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::StatusOr<std::vector<Holder>> Holders(const v1::ClusterConfig& config) {
  std::vector<Holder> holders;
  const double kept = config.placement().coordinator_share();
  if (!std::isfinite(kept) || kept < 0) {
    return Invalid("placement.coordinator_share: ", kept, " is not 0 or more");
  }
  if (kept > 0 || config.workers().empty()) {
    holders.push_back({.share = kept > 0 ? kept : 1});
  }
  for (int i = 0; i < config.workers_size(); ++i) {
    const v1::Worker& worker = config.workers(i);
    // 0 is protobuf's "not given"; the default is 1.
    const double share = worker.share() == 0 ? 1 : worker.share();
    if (!std::isfinite(share) || share < 0) {
      return Invalid("workers[",
                     i,
                     "].share: worker ",
                     worker.name(),
                     ": ",
                     share,
                     " is not above 0");
    }
    holders.push_back({WorkerId{i}, worker.name(), share});
  }
  return holders;
}

// `units` cut in proportion to `shares`, largest remainder first (ties: the
// earlier one); the result adds up to `units`.
std::vector<int32_t> Apportion(int32_t units,
                               const std::vector<double>& shares) {
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int32_t> out(shares.size());
  std::vector<std::pair<double, size_t>> remainders;
  int32_t left = units;
  for (size_t i = 0; i < shares.size(); ++i) {
    const double exact = units * (shares[i] / total);
    out[i] = std::min(static_cast<int32_t>(exact), left);
    left -= out[i];
    remainders.push_back({out[i] - exact, i});  // ascending = largest first
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t i = 0; left > 0; i = (i + 1) % remainders.size(), --left) {
    ++out[remainders[i].second];
  }
  return out;
}

std::vector<Range> Consecutive(const std::vector<int32_t>& sizes) {
  std::vector<Range> out;
  int32_t begin = 0;
  for (const int32_t size : sizes) {
    out.push_back({begin, begin + size});
    begin += size;
  }
  return out;
}

// Every slice of layers x experts with those columns.
void AppendSlices(const Range& layers,
                  const Range& experts,
                  const Range& columns,
                  Shard* shard) {
  for (int32_t layer = layers.begin; layer < layers.end; ++layer) {
    for (int32_t expert = experts.begin; expert < experts.end; ++expert) {
      shard->slices.push_back(
          {LayerId{layer}, ExpertId{expert}, columns.begin, columns.end});
    }
  }
}

// What a layer is cut into: whole experts, or columns of all experts.
struct Cut {
  bool columns = false;
  int32_t units = 0;  // pieces that cannot be cut further
  const char* unit = "experts";
};

absl::StatusOr<Cut> MakeCut(const std::string& split,
                            const ExpertShape& shape) {
  if (split.empty() || split == "experts") {
    return Cut{.units = shape.experts};
  }
  if (split != "columns") {
    return Invalid("placement.split: \"",
                   split,
                   "\" is unknown; say \"experts\" or \"columns\"");
  }
  if (shape.intermediate % shape.column_multiple != 0) {
    return Invalid("placement.split: an expert's ",
                   shape.intermediate,
                   " columns are no multiple of ",
                   shape.column_multiple,
                   "; say \"experts\"");
  }
  return Cut{.columns = true,
             .units = shape.intermediate / shape.column_multiple,
             .unit = "column groups"};
}

std::vector<Shard> MakeShards(const Cut& cut,
                              const std::vector<int32_t>& sizes,
                              const ExpertShape& shape) {
  std::vector<Shard> shards;
  for (const Range& range : Consecutive(sizes)) {
    Shard shard{.id = ShardId{static_cast<int32_t>(shards.size())},
                .slices = {}};
    const Range layers{0, shape.layers};
    if (cut.columns) {
      AppendSlices(layers,
                   {0, shape.experts},
                   {range.begin * shape.column_multiple,
                    range.end * shape.column_multiple},
                   &shard);
    } else {
      AppendSlices(layers, range, {0, shape.intermediate}, &shard);
    }
    shards.push_back(std::move(shard));
  }
  return shards;
}

// One shard per holder, sized by its share.
absl::StatusOr<Placement> ByShare(const std::vector<Holder>& holders,
                                  const Cut& cut,
                                  const ExpertShape& shape) {
  std::vector<double> shares;
  for (const Holder& holder : holders) shares.push_back(holder.share);
  const std::vector<int32_t> sizes = Apportion(cut.units, shares);
  Placement out;
  for (size_t i = 0; i < holders.size(); ++i) {
    if (sizes[i] == 0) {
      return Invalid("placement: ",
                     holders[i].name,
                     " would hold nothing: its share ",
                     holders[i].share,
                     " of ",
                     cut.units,
                     " ",
                     cut.unit,
                     " rounds to 0; raise the share or remove it");
    }
    out.holder.push_back(holders[i].id);
  }
  out.shards = MakeShards(cut, sizes, shape);
  return out;
}

// `count` shards of equal size, dealt out by share.
absl::StatusOr<Placement> Dealt(int32_t count,
                                const std::vector<Holder>& holders,
                                const Cut& cut,
                                const ExpertShape& shape) {
  if (count < 0 || count > cut.units || count > limits::kShardsMax) {
    return Invalid("placement.shards: ",
                   count,
                   " is not between 1 and ",
                   std::min(cut.units, limits::kShardsMax),
                   ", the number of ",
                   cut.unit);
  }
  std::vector<double> shares;
  for (const Holder& holder : holders) shares.push_back(holder.share);
  const std::vector<int32_t> dealt = Apportion(count, shares);
  Placement out;
  for (size_t i = 0; i < holders.size(); ++i) {
    if (dealt[i] == 0) {
      return Invalid("placement.shards: ",
                     holders[i].name,
                     " would hold nothing: its share ",
                     holders[i].share,
                     " of ",
                     count,
                     " shards rounds to 0; raise placement.shards");
    }
    out.holder.insert(out.holder.end(), dealt[i], holders[i].id);
  }
  out.shards = MakeShards(
      cut, Apportion(cut.units, std::vector<double>(count, 1)), shape);
  return out;
}

absl::StatusOr<WorkerId> FindHolder(const v1::ClusterConfig& config,
                                    const std::string& name,
                                    const std::string& field) {
  if (name == "coordinator") return kCoordinator;
  std::string names = "coordinator";
  for (int i = 0; i < config.workers_size(); ++i) {
    if (config.workers(i).name() == name) return WorkerId{i};
    absl::StrAppend(&names, ", ", config.workers(i).name());
  }
  return Invalid(
      field, ".holder: no worker is named \"", name, "\"; there are: ", names);
}

// [begin, end) within [0, count); 0 0 means all.
absl::StatusOr<Range> ReadRange(const std::string& field,
                                int32_t begin,
                                int32_t end,
                                int32_t count) {
  if (begin == 0 && end == 0) return Range{0, count};
  if (begin < 0 || begin >= end || end > count) {
    return Invalid(
        field, ": [", begin, ", ", end, ") does not lie in [0, ", count, ")");
  }
  return Range{begin, end};
}

absl::StatusOr<Placement> Explicit(const v1::ClusterConfig& config,
                                   const ExpertShape& shape) {
  if (config.placement().explicit__size() > limits::kShardsMax) {
    return Invalid(
        "placement.explicit: more than ", limits::kShardsMax, " shards");
  }
  // No valid placement has more: every slice has a column of its own.
  const int64_t slices_max =
      static_cast<int64_t>(shape.layers) * shape.experts * shape.intermediate;
  int64_t slices = 0;
  Placement out;
  for (const v1::ShardPlacement& entry : config.placement().explicit_()) {
    Shard shard{.id = ShardId{static_cast<int32_t>(out.shards.size())},
                .slices = {}};
    const std::string field =
        absl::StrCat("placement.explicit[", Index(shard.id), "]");
    ASSIGN_OR_RETURN(const WorkerId holder,
                     FindHolder(config, entry.holder(), field));
    for (const v1::SliceRange& range : entry.slices()) {
      ASSIGN_OR_RETURN(const Range layers,
                       ReadRange(field + " layers",
                                 range.layer_begin(),
                                 range.layer_end(),
                                 shape.layers));
      ASSIGN_OR_RETURN(const Range experts,
                       ReadRange(field + " experts",
                                 range.expert_begin(),
                                 range.expert_end(),
                                 shape.experts));
      ASSIGN_OR_RETURN(const Range columns,
                       ReadRange(field + " columns",
                                 range.column_begin(),
                                 range.column_end(),
                                 shape.intermediate));
      slices += static_cast<int64_t>(layers.end - layers.begin) *
                (experts.end - experts.begin);
      if (slices > slices_max) {
        return Invalid(field, ": slices overlap; each column is held once");
      }
      AppendSlices(layers, experts, columns, &shard);
    }
    std::sort(shard.slices.begin(), shard.slices.end());
    out.shards.push_back(std::move(shard));
    out.holder.push_back(holder);
  }
  return out;
}

absl::StatusOr<Placement> Choose(const v1::ClusterConfig& config,
                                 const ExpertShape& shape) {
  if (config.placement().explicit__size() > 0) return Explicit(config, shape);
  ASSIGN_OR_RETURN(const std::vector<Holder> holders, Holders(config));
  ASSIGN_OR_RETURN(const Cut cut, MakeCut(config.placement().split(), shape));
  const int32_t count = config.placement().shards();
  if (count != 0) return Dealt(count, holders, cut, shape);
  return ByShare(holders, cut, shape);
}

}  // namespace

absl::StatusOr<Placement> MakePlacement(const v1::ClusterConfig& config,
                                        const ExpertShape& shape) {
  ASSIGN_OR_RETURN(Placement placement, Choose(config, shape));
  RETURN_IF_ERROR(Validate(placement, shape));
  return placement;
}

void AddShards(const Placement& placement,
               WorkerId holder,
               v1::AssignRequest& request) {
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    if (placement.holder[i] != holder) continue;
    v1::ShardAssignment* to = request.add_shards();
    to->set_shard(Index(placement.shards[i].id));
    for (const Slice& slice : placement.shards[i].slices) {
      v1::SliceAssignment* s = to->add_slices();
      s->set_layer(Index(slice.layer));
      s->set_expert(Index(slice.expert));
      s->set_begin(slice.begin);
      s->set_end(slice.end);
    }
  }
}

std::string ToString(const Placement& placement,
                     const v1::ClusterConfig& config) {
  std::string out;
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    const WorkerId holder = placement.holder[i];
    absl::StrAppend(&out,
                    "shard ",
                    i,
                    ": ",
                    holder == kCoordinator
                        ? "coordinator"
                        : config.workers(Index(holder)).name(),
                    ", ",
                    placement.shards[i].slices.size(),
                    " slices\n");
  }
  return out;
}

}  // namespace conclave::cluster
