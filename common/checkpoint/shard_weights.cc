// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/shard_weights.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/fp8.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

// Rows that are cut in width are read whole, this many bytes at a time.
constexpr size_t kPieceBytes = size_t{1} << 20;

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

// One projection of one expert inside a tensor, fused or its own:
// [rows, cols] from element `offset` on.
struct Matrix {
  TensorView tensor;
  uint64_t offset = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  std::string name;  // without prefix; of FP8 weights, which have scales
};

// gate, up: [intermediate, hidden]; down: [hidden, intermediate].
struct Expert {
  Matrix gate, up, down;
};

absl::StatusOr<Expert> FindExpert(const Checkpoint& checkpoint,
                                  LayerId layer,
                                  ExpertId expert) {
  const int64_t hidden = checkpoint.config().hidden_size;
  const int64_t width = checkpoint.config().moe_intermediate_size;
  const uint64_t size = static_cast<uint64_t>(hidden) * width;
  const uint64_t e = Index(expert);
  const std::string at = absl::StrCat("layers.", Index(layer), ".mlp.experts.");
  if (checkpoint.Has(at + "gate_up_proj")) {
    ASSIGN_OR_RETURN(const TensorView both,
                     checkpoint.Find(at + "gate_up_proj"));
    ASSIGN_OR_RETURN(const TensorView down, checkpoint.Find(at + "down_proj"));
    return Expert{.gate = {both, 2 * e * size, width, hidden, ""},
                  .up = {both, (2 * e + 1) * size, width, hidden, ""},
                  .down = {down, e * size, hidden, width, ""}};
  }
  const std::string own = absl::StrCat(at, e, ".");
  ASSIGN_OR_RETURN(const TensorView gate,
                   checkpoint.Find(own + "gate_proj.weight"));
  ASSIGN_OR_RETURN(const TensorView up,
                   checkpoint.Find(own + "up_proj.weight"));
  ASSIGN_OR_RETURN(const TensorView down,
                   checkpoint.Find(own + "down_proj.weight"));
  return Expert{.gate = {gate, 0, width, hidden, own + "gate_proj.weight"},
                .up = {up, 0, width, hidden, own + "up_proj.weight"},
                .down = {down, 0, hidden, width, own + "down_proj.weight"}};
}

// Part of a matrix: rows [first, first + rows), columns [begin, end).
struct Cut {
  int64_t first = 0, rows = 0;
  int64_t begin = 0, end = 0;
  int64_t block = 0;  // rows that share a scale in what is held
};

absl::Status ReadRows(const Checkpoint& checkpoint,
                      const Matrix& matrix,
                      const Slice& slice,
                      std::span<std::byte> out) {
  const uint64_t element =
      matrix.offset + static_cast<uint64_t>(slice.begin) * matrix.cols;
  return checkpoint.ReadBytes(
      matrix.tensor, element * SizeOf(matrix.tensor.dtype), out);
}

absl::Status ReadColumns(const Checkpoint& checkpoint,
                         const Matrix& matrix,
                         const Slice& slice,
                         std::vector<std::byte>& piece,
                         std::span<std::byte> out) {
  const size_t size = SizeOf(matrix.tensor.dtype);
  const uint64_t begin = matrix.offset * size;
  if (slice.width() == matrix.cols) {
    return checkpoint.ReadBytes(matrix.tensor, begin, out);
  }
  const size_t row_bytes = matrix.cols * size;
  const size_t out_bytes = slice.width() * size;
  const int64_t step =
      std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / row_bytes));
  for (int64_t row = 0; row < matrix.rows; row += step) {
    const size_t rows = std::min(step, matrix.rows - row);
    piece.resize(rows * row_bytes);
    RETURN_IF_ERROR(checkpoint.ReadBytes(
        matrix.tensor, begin + static_cast<uint64_t>(row) * row_bytes, piece));
    for (size_t i = 0; i < rows; ++i) {
      std::memcpy(out.data() + (row + i) * out_bytes,
                  piece.data() + i * row_bytes + slice.begin * size,
                  out_bytes);
    }
  }
  return absl::OkStatus();
}

// Scales of rows [first, first + rows) and columns [begin, end) of an FP8
// matrix, a row of them per `block` rows.
absl::Status ReadScales(const Checkpoint& checkpoint,
                        const Matrix& matrix,
                        const Cut& cut,
                        std::byte* out) {
  ASSIGN_OR_RETURN(const std::vector<uint16_t> all,
                   ReadFp8Scales(checkpoint, matrix.name));
  const int64_t stride = Fp8Blocks(matrix.cols);
  const int64_t begin = cut.begin / kFp8Block;
  const size_t bytes = (Fp8Blocks(cut.end) - begin) * sizeof(uint16_t);
  for (int64_t row = 0; row < cut.rows; row += cut.block, out += bytes) {
    const int64_t from = (cut.first + row) / kFp8Block * stride + begin;
    std::memcpy(out, all.data() + from, bytes);
  }
  return absl::OkStatus();
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const LoadProgressFn& progress)
      : checkpoint_(checkpoint),
        hidden_(checkpoint.config().hidden_size),
        progress_(progress) {}

  // Sizes first, so that progress can tell the total.
  absl::Status Size(std::span<const Slice> slices) {
    for (const Slice& slice : slices) {
      ASSIGN_OR_RETURN(const Expert expert,
                       FindExpert(checkpoint_, slice.layer, slice.expert));
      const TensorView& gate = expert.gate.tensor;
      for (const Matrix* matrix : {&expert.up, &expert.down}) {
        if (matrix->tensor.dtype != gate.dtype) {
          return absl::InvalidArgumentError(
              absl::StrCat(matrix->tensor.file,
                           ": tensor ",
                           matrix->tensor.name,
                           ": its dtype differs from that of ",
                           gate.name));
        }
      }
      total_ += 3 * RowBytes(gate.dtype) * slice.width();
      if (gate.dtype == DType::kF8E4M3) {
        RETURN_IF_ERROR(CheckCut(slice));
        total_ += 2 * UpScales(slice.width()) + DownScales(slice.width());
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ShardLayer> Load(std::span<const Slice> slices) {
    ShardLayer layer;
    layer.slices = static_cast<int32_t>(slices.size());
    layer.width = slices[0].width();
    ASSIGN_OR_RETURN(
        const Expert first,
        FindExpert(checkpoint_, slices[0].layer, slices[0].expert));
    layer.dtype = first.gate.tensor.dtype;
    const size_t bytes = RowBytes(layer.dtype) * layer.width;
    layer.gate_up = Buffer(2 * bytes * slices.size());
    layer.down = Buffer(bytes * slices.size());
    const bool fp8 = layer.dtype == DType::kF8E4M3;
    if (fp8) PlaceScales(slices.size(), layer);
    for (size_t i = 0; i < slices.size(); ++i) {
      layer.expert.push_back(slices[i].expert);
      ASSIGN_OR_RETURN(
          const Expert expert,
          FindExpert(checkpoint_, slices[i].layer, slices[i].expert));
      if (expert.gate.tensor.dtype != layer.dtype) {
        return absl::InvalidArgumentError(
            absl::StrCat(expert.gate.tensor.file,
                         ": tensor ",
                         expert.gate.tensor.name,
                         ": its dtype differs from that of ",
                         first.gate.tensor.name));
      }
      const auto gate_up = layer.gate_up.bytes().subspan(2 * i * bytes);
      const auto down = layer.down.bytes().subspan(i * bytes, bytes);
      RETURN_IF_ERROR(
          ReadRows(checkpoint_, expert.gate, slices[i], gate_up.first(bytes)));
      RETURN_IF_ERROR(ReadRows(
          checkpoint_, expert.up, slices[i], gate_up.subspan(bytes, bytes)));
      Report(2 * bytes);
      RETURN_IF_ERROR(
          ReadColumns(checkpoint_, expert.down, slices[i], piece_, down));
      Report(bytes);
      if (fp8) RETURN_IF_ERROR(LoadScales(expert, slices[i], i, layer));
    }
    return layer;
  }

  uint64_t total() const { return total_; }

 private:
  uint64_t RowBytes(DType dtype) const { return hidden_ * SizeOf(dtype); }

  // Rows of a slice, and of hidden, that can share a scale.
  int64_t UpBlock(int64_t width) const {
    return std::gcd(int64_t{kFp8Block}, width);
  }
  int64_t DownBlock() const {
    return std::gcd(int64_t{kFp8Block}, static_cast<int64_t>(hidden_));
  }
  // Bytes of the scales of one gate or up, and of one down.
  uint64_t UpScales(int64_t width) const {
    return sizeof(uint16_t) * (width / UpBlock(width)) *
           Fp8Blocks(static_cast<int64_t>(hidden_));
  }
  uint64_t DownScales(int64_t width) const {
    return sizeof(uint16_t) * (hidden_ / DownBlock()) * Fp8Blocks(width);
  }

  absl::Status CheckCut(const Slice& slice) const {
    const int64_t whole = checkpoint_.config().moe_intermediate_size;
    if (slice.begin % kFp8Block == 0 &&
        (slice.end % kFp8Block == 0 || slice.end == whole)) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(slice),
                     ": FP8 experts can only be cut at multiples of ",
                     kFp8Block,
                     " columns"));
  }

  void PlaceScales(size_t slices, ShardLayer& layer) const {
    layer.up_block = static_cast<int32_t>(UpBlock(layer.width));
    layer.down_block = static_cast<int32_t>(DownBlock());
    layer.gate_up_scales = Buffer(2 * slices * UpScales(layer.width));
    layer.down_scales = Buffer(slices * DownScales(layer.width));
  }

  // Scales of slice i, whose codes are checked too.
  absl::Status LoadScales(const Expert& expert,
                          const Slice& slice,
                          size_t i,
                          ShardLayer& layer) {
    const auto hidden = static_cast<int64_t>(hidden_);
    const uint64_t up = UpScales(layer.width), down = DownScales(layer.width);
    const Cut rows{slice.begin, slice.width(), 0, hidden, layer.up_block};
    const Cut columns{0, hidden, slice.begin, slice.end, layer.down_block};
    std::byte* gate_up = layer.gate_up_scales.data() + 2 * i * up;
    RETURN_IF_ERROR(ReadScales(checkpoint_, expert.gate, rows, gate_up));
    RETURN_IF_ERROR(ReadScales(checkpoint_, expert.up, rows, gate_up + up));
    RETURN_IF_ERROR(ReadScales(checkpoint_,
                               expert.down,
                               columns,
                               layer.down_scales.data() + i * down));
    Report(2 * up + down);
    const uint64_t bytes = hidden_ * layer.width;
    const auto codes = layer.gate_up.bytes().subspan(2 * i * bytes);
    RETURN_IF_ERROR(CheckFp8Codes(codes.first(bytes), expert.gate.tensor));
    RETURN_IF_ERROR(
        CheckFp8Codes(codes.subspan(bytes, bytes), expert.up.tensor));
    return CheckFp8Codes(layer.down.bytes().subspan(i * bytes, bytes),
                         expert.down.tensor);
  }

  void Report(uint64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  const Checkpoint& checkpoint_;
  const uint64_t hidden_;
  const LoadProgressFn progress_;
  std::vector<std::byte> piece_;
  uint64_t done_ = 0;
  uint64_t total_ = 0;
};

}  // namespace

StackedExperts ShardLayer::Stacked(int32_t hidden) const {
  return {.slices = slices,
          .width = width,
          .hidden = hidden,
          .dtype = dtype,
          .gate_up = gate_up.data(),
          .down = down.data(),
          .gate_up_scales = gate_up_scales.data(),
          .down_scales = down_scales.data(),
          .up_block = up_block,
          .down_block = down_block};
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
