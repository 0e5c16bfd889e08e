// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/shard_weights.h"

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/parallel_tasks.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

absl::Status Check(const ExpertShape& shape, const Shard& shard) {
  const auto bad = [&](const Slice& slice, const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shard ", Index(shard.id), ", ", ToString(slice), ": ", why));
  };
  for (size_t i = 0; i < shard.slices.size(); ++i) {
    const Slice& slice = shard.slices[i];
    if (!IsPartOf(slice, shape)) return bad(slice, "is not part of the model");
    if (i == 0) continue;
    const Slice& before = shard.slices[i - 1];
    if (std::pair(before.layer, before.expert) >=
        std::pair(slice.layer, slice.expert)) {
      return bad(slice, "slices must ascend by (layer, expert), each once");
    }
    if (before.layer == slice.layer && before.width() != slice.width()) {
      return bad(slice, "all slices of one layer must have one width");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SliceLayout>> Layouts(const Checkpoint& checkpoint,
                                                 const Shard& shard) {
  RETURN_IF_ERROR(Check(checkpoint.config().expert_shape(), shard));
  std::vector<SliceLayout> out;
  out.reserve(shard.slices.size());
  for (const Slice& slice : shard.slices) {
    ASSIGN_OR_RETURN(SliceLayout layout, LayoutOfSlice(checkpoint, slice));
    out.push_back(layout);
  }
  return out;
}

StackedWeight Room(const WeightLayout& each, int32_t slices) {
  return {.each = each,
          .data = Buffer(slices * each.data_bytes()),
          .scales = Buffer(slices * each.scale_bytes()),
          .biases = Buffer(slices * each.bias_bytes())};
}

// Each layer's storage is that of its first slice; ReadSlice finds the tensor
// that differs.
ShardWeights Room(const Shard& shard,
                  std::span<const SliceLayout> layouts,
                  int32_t layers) {
  ShardWeights out;
  out.shard = shard;
  out.layers.resize(static_cast<size_t>(layers));
  const std::vector<Slice>& all = shard.slices;
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    ShardLayer& layer = out.layers[Index(all[begin].layer)];
    for (; end < all.size() && all[end].layer == all[begin].layer; ++end) {
      layer.expert.push_back(all[end].expert);
    }
    layer.slices = static_cast<int32_t>(end - begin);
    layer.width = all[begin].width();
    layer.gate = Room(layouts[begin].gate, layer.slices);
    layer.up = Room(layouts[begin].up, layer.slices);
    layer.down = Room(layouts[begin].down, layer.slices);
    out.bytes += layer.gate.bytes() + layer.up.bytes() + layer.down.bytes();
  }
  return out;
}

}  // namespace

StoredWeight StackedWeight::View() const {
  StoredWeight out{each, data.data(), scales.data(), biases.data()};
  const uint64_t bytes = each.data_bytes();
  if (bytes > 0) out.layout.rows *= static_cast<int64_t>(data.size() / bytes);
  return out;
}

WeightSpans StackedWeight::Part(int32_t slice) {
  const auto part = [&](Buffer& buffer, uint64_t bytes) {
    return buffer.bytes().subspan(slice * bytes, bytes);
  };
  return {part(data, each.data_bytes()),
          part(scales, each.scale_bytes()),
          part(biases, each.bias_bytes())};
}

StackedExperts ShardLayer::Stacked() const {
  return {.slices = slices,
          .width = width,
          .hidden = static_cast<int32_t>(gate.each.cols),
          .gate = gate.View(),
          .up = up.View(),
          .down = down.View()};
}

SliceSpans ShardWeights::Part(size_t slice) {
  const Slice& which = shard.slices[slice];
  ShardLayer& layer = layers[Index(which.layer)];
  const auto at =
      std::lower_bound(layer.expert.begin(), layer.expert.end(), which.expert);
  const auto i = static_cast<int32_t>(at - layer.expert.begin());
  return {layer.gate.Part(i), layer.up.Part(i), layer.down.Part(i)};
}

absl::StatusOr<uint64_t> ShardBytes(const Checkpoint& checkpoint,
                                    const Shard& shard) {
  ASSIGN_OR_RETURN(const auto layouts, Layouts(checkpoint, shard));
  uint64_t bytes = 0;
  for (const SliceLayout& layout : layouts) bytes += layout.bytes();
  return bytes;
}

absl::StatusOr<ShardWeights> RoomFor(const Shard& shard,
                                     std::span<const SliceLayout> layouts,
                                     const ExpertShape& shape) {
  RETURN_IF_ERROR(Check(shape, shard));
  for (size_t i = 1; i < layouts.size(); ++i) {
    if (shard.slices[i].layer == shard.slices[i - 1].layer &&
        layouts[i] != layouts[i - 1]) {
      return absl::InvalidArgumentError(
          absl::StrCat("shard ",
                       Index(shard.id),
                       ", ",
                       ToString(shard.slices[i]),
                       ": its storage differs from that of the layer's other "
                       "experts"));
    }
  }
  return Room(shard, layouts, shape.layers);
}

absl::StatusOr<std::vector<ShardWeights>> LoadShards(
    const Checkpoint& checkpoint,
    std::span<const Shard> shards,
    int32_t threads,
    const LoadProgressFn& progress) {
  std::vector<ShardWeights> out;
  std::vector<std::pair<size_t, size_t>> slices;  // shard, slice of it
  uint64_t total = 0, done = 0;
  for (const Shard& shard : shards) {
    ASSIGN_OR_RETURN(const auto layouts, Layouts(checkpoint, shard));
    for (size_t i = 0; i < layouts.size(); ++i) {
      slices.emplace_back(out.size(), i);
    }
    out.push_back(Room(shard, layouts, checkpoint.config().num_hidden_layers));
    total += out.back().bytes;
  }
  std::mutex mu;
  const auto load = [&](int64_t task) {
    const auto [shard, i] = slices[static_cast<size_t>(task)];
    ShardWeights& weights = out[shard];
    const Slice& slice = weights.shard.slices[i];
    const ShardLayer& layer = weights.layers[Index(slice.layer)];
    const SliceLayout layout{layer.gate.each, layer.up.each, layer.down.each};
    RETURN_IF_ERROR(ReadSlice(checkpoint, slice, layout, weights.Part(i)));
    const std::lock_guard<std::mutex> lock(mu);
    done += layout.bytes();
    if (progress) progress(done, total);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(
      ParallelTasks(static_cast<int64_t>(slices.size()), threads, load));
  return out;
}

absl::StatusOr<ShardWeights> LoadShard(const Checkpoint& checkpoint,
                                       const Shard& shard,
                                       const LoadProgressFn& progress) {
  ASSIGN_OR_RETURN(std::vector<ShardWeights> out,
                   LoadShards(checkpoint, {&shard, 1}, 1, progress));
  return std::move(out[0]);
}

}  // namespace conclave::checkpoint
