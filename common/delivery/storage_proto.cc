// SPDX-License-Identifier: Apache-2.0
#include "common/delivery/storage_proto.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave::delivery {
namespace {

v1::WeightStorage ToProto(const WeightLayout& layout) {
  v1::WeightStorage out;
  out.set_dtype(std::string(Name(layout.dtype)));
  out.set_rows(layout.rows);
  out.set_cols(layout.cols);
  out.set_bits(layout.bits);
  out.set_group(layout.group);
  out.set_scale_dtype(std::string(Name(layout.scale_dtype)));
  out.set_biases(layout.biases);
  return out;
}

bool IsPossible(const WeightLayout& w) {
  switch (w.dtype) {
    case DType::kF32:
    case DType::kBF16:
      return w.bits == 0 && w.group == 0 && !w.biases;
    case DType::kF8E4M3:
      return w.bits == 0 && w.group > 0 && w.group <= kFp8Block && !w.biases;
    case DType::kU32:
      return ((w.bits >= 3 && w.bits <= 6) || w.bits == 8) && w.group > 0 &&
             w.cols % w.group == 0 && w.cols * w.bits % 32 == 0 &&
             (w.scale_dtype == DType::kBF16 || w.scale_dtype == DType::kF16);
    default:
      return false;
  }
}

absl::StatusOr<WeightLayout> FromProto(const v1::WeightStorage& from,
                                       int64_t rows,
                                       int64_t cols,
                                       const std::string& which) {
  WeightLayout out;
  ASSIGN_OR_RETURN(out.dtype, DTypeFromName(from.dtype()));
  ASSIGN_OR_RETURN(out.scale_dtype, DTypeFromName(from.scale_dtype()));
  out.rows = from.rows();
  out.cols = from.cols();
  out.bits = from.bits();
  out.group = from.group();
  out.biases = from.biases();
  if (out.rows == rows && out.cols == cols && IsPossible(out)) return out;
  return absl::InvalidArgumentError(absl::StrCat("assign: ",
                                                 which,
                                                 " cannot be stored as ",
                                                 from.ShortDebugString(),
                                                 "; expected ",
                                                 rows,
                                                 " x ",
                                                 cols));
}

}  // namespace

v1::SliceStorage ToProto(const checkpoint::SliceLayout& layout) {
  v1::SliceStorage out;
  *out.mutable_gate() = ToProto(layout.gate);
  *out.mutable_up() = ToProto(layout.up);
  *out.mutable_down() = ToProto(layout.down);
  return out;
}

absl::StatusOr<checkpoint::SliceLayout> FromProto(const v1::SliceStorage& from,
                                                  int64_t width,
                                                  int64_t hidden) {
  checkpoint::SliceLayout out;
  ASSIGN_OR_RETURN(out.gate, FromProto(from.gate(), width, hidden, "gate"));
  ASSIGN_OR_RETURN(out.up, FromProto(from.up(), width, hidden, "up"));
  ASSIGN_OR_RETURN(out.down, FromProto(from.down(), hidden, width, "down"));
  return out;
}

Slice FromProto(const v1::SliceAssignment& from) {
  return {.layer = static_cast<LayerId>(from.layer()),
          .expert = static_cast<ExpertId>(from.expert()),
          .begin = from.begin(),
          .end = from.end()};
}

absl::Status DescribeSlices(const checkpoint::Checkpoint& checkpoint,
                            v1::AssignRequest* request) {
  const ExpertShape shape = checkpoint.config().expert_shape();
  v1::ModelShape* to = request->mutable_shape();
  to->set_layers(shape.layers);
  to->set_experts(shape.experts);
  to->set_intermediate(shape.intermediate);
  to->set_hidden(shape.hidden);
  std::vector<checkpoint::SliceLayout> storages;  // a handful
  for (v1::ShardAssignment& shard : *request->mutable_shards()) {
    for (v1::SliceAssignment& slice : *shard.mutable_slices()) {
      ASSIGN_OR_RETURN(const checkpoint::SliceLayout layout,
                       checkpoint::LayoutOfSlice(checkpoint, FromProto(slice)));
      const auto at = std::find(storages.begin(), storages.end(), layout);
      slice.set_storage(static_cast<int32_t>(at - storages.begin()));
      if (at != storages.end()) continue;
      storages.push_back(layout);
      *request->add_storages() = ToProto(layout);
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave::delivery
