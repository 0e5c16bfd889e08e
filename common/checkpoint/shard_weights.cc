// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/shard_weights.h"

#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/linear.h"
#include "common/checkpoint/tensor_check.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

absl::Status Check(const ModelConfig& config, const Shard& shard) {
  const auto bad = [&](const Slice& slice, const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shard ", Index(shard.id), ", ", ToString(slice), ": ", why));
  };
  for (size_t i = 0; i < shard.slices.size(); ++i) {
    const Slice& slice = shard.slices[i];
    if (Index(slice.layer) < 0 ||
        Index(slice.layer) >= config.num_hidden_layers ||
        Index(slice.expert) < 0 || Index(slice.expert) >= config.num_experts ||
        slice.begin < 0 || slice.begin >= slice.end ||
        slice.end > config.moe_intermediate_size) {
      return bad(slice, "is not part of the model");
    }
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

std::string MlpOf(LayerId layer) {
  return absl::StrCat("layers.", Index(layer), ".mlp.");
}

// The three parts of a slice, and how each will lie in memory.
struct SliceParts {
  Expert expert;
  Cut rows;     // of gate and up
  Cut columns;  // of down
  WeightLayout gate, up, down;
};

absl::StatusOr<SliceParts> FindParts(const Checkpoint& checkpoint,
                                     const Slice& slice) {
  SliceParts out;
  const int64_t hidden = checkpoint.config().hidden_size;
  ASSIGN_OR_RETURN(out.expert,
                   FindExpert(checkpoint, MlpOf(slice.layer), slice.expert));
  out.rows = {slice.begin, slice.end, 0, hidden};
  out.columns = {0, hidden, slice.begin, slice.end};
  constexpr bool kStacked = true;
  ASSIGN_OR_RETURN(out.gate, LayoutOf(out.expert.gate, out.rows, kStacked));
  ASSIGN_OR_RETURN(out.up, LayoutOf(out.expert.up, out.rows, kStacked));
  ASSIGN_OR_RETURN(out.down, LayoutOf(out.expert.down, out.columns, kStacked));
  return out;
}

StackedWeight Room(const WeightLayout& each, size_t slices) {
  return {.each = each,
          .data = Buffer(slices * each.data_bytes()),
          .scales = Buffer(slices * each.scale_bytes()),
          .biases = Buffer(slices * each.bias_bytes())};
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const LoadProgressFn& progress)
      : checkpoint_(checkpoint), progress_(progress) {}

  // Sizes first, so that progress can tell the total.
  absl::Status Size(std::span<const Slice> slices) {
    for (const Slice& slice : slices) {
      ASSIGN_OR_RETURN(const SliceParts parts, FindParts(checkpoint_, slice));
      total_ += parts.gate.bytes() + parts.up.bytes() + parts.down.bytes();
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ShardLayer> Load(std::span<const Slice> slices) {
    ShardLayer layer;
    layer.slices = static_cast<int32_t>(slices.size());
    layer.width = slices[0].width();
    for (size_t i = 0; i < slices.size(); ++i) {
      ASSIGN_OR_RETURN(const SliceParts parts,
                       FindParts(checkpoint_, slices[i]));
      if (i == 0) {
        layer.gate = Room(parts.gate, slices.size());
        layer.up = Room(parts.up, slices.size());
        layer.down = Room(parts.down, slices.size());
      }
      layer.expert.push_back(slices[i].expert);
      const Expert& e = parts.expert;
      RETURN_IF_ERROR(Read(e.gate, parts.rows, parts.gate, i, layer.gate));
      RETURN_IF_ERROR(Read(e.up, parts.rows, parts.up, i, layer.up));
      RETURN_IF_ERROR(Read(e.down, parts.columns, parts.down, i, layer.down));
    }
    return layer;
  }

  uint64_t total() const { return total_; }

 private:
  absl::Status Read(const Linear& linear,
                    const Cut& cut,
                    const WeightLayout& layout,
                    size_t i,
                    StackedWeight& out) {
    if (layout != out.each) {
      return BadTensor(linear.weight,
                       "its storage differs from that of the layer's other "
                       "experts");
    }
    const auto part = [&](Buffer& buffer, uint64_t bytes) {
      return buffer.bytes().subspan(i * bytes, bytes);
    };
    RETURN_IF_ERROR(ReadPart(checkpoint_,
                             linear,
                             cut,
                             layout,
                             {part(out.data, layout.data_bytes()),
                              part(out.scales, layout.scale_bytes()),
                              part(out.biases, layout.bias_bytes())}));
    done_ += layout.bytes();
    if (progress_) progress_(done_, total_);
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const LoadProgressFn progress_;
  uint64_t done_ = 0;
  uint64_t total_ = 0;
};

}  // namespace

StoredWeight StackedWeight::View() const {
  StoredWeight out{each, data.data(), scales.data(), biases.data()};
  const uint64_t bytes = each.data_bytes();
  if (bytes > 0) out.layout.rows *= static_cast<int64_t>(data.size() / bytes);
  return out;
}

StackedExperts ShardLayer::Stacked() const {
  return {.slices = slices,
          .width = width,
          .hidden = static_cast<int32_t>(gate.each.cols),
          .gate = gate.View(),
          .up = up.View(),
          .down = down.View()};
}

absl::StatusOr<uint64_t> ShardBytes(const Checkpoint& checkpoint,
                                    const Shard& shard) {
  RETURN_IF_ERROR(Check(checkpoint.config(), shard));
  Loader loader(checkpoint, nullptr);
  RETURN_IF_ERROR(loader.Size(shard.slices));
  return loader.total();
}

absl::StatusOr<ShardWeights> LoadShard(const Checkpoint& checkpoint,
                                       const Shard& shard,
                                       const LoadProgressFn& progress) {
  RETURN_IF_ERROR(Check(checkpoint.config(), shard));
  Loader loader(checkpoint, progress);
  RETURN_IF_ERROR(loader.Size(shard.slices));
  ShardWeights out;
  out.shard = shard;
  out.layers.resize(checkpoint.config().num_hidden_layers);
  const std::span<const Slice> all(shard.slices);
  for (size_t begin = 0; begin < all.size();) {
    size_t end = begin + 1;
    while (end < all.size() && all[end].layer == all[begin].layer) ++end;
    ASSIGN_OR_RETURN(out.layers[Index(all[begin].layer)],
                     loader.Load(all.subspan(begin, end - begin)));
    begin = end;
  }
  out.bytes = loader.total();
  return out;
}

}  // namespace conclave::checkpoint
