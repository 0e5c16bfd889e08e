// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/slice_part.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/tensor_check.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

// Where a slice stands in the checkpoint.
struct Place {
  Expert expert;
  Cut rows;     // of gate and up
  Cut columns;  // of down
  SliceLayout layout;
};

absl::StatusOr<Place> Find(const Checkpoint& checkpoint, const Slice& slice) {
  const ModelConfig& config = checkpoint.config();
  // Not config.expert_shape(), which looks through all layers: this is asked
  // for every slice.
  const ExpertShape shape{.layers = config.num_hidden_layers,
                          .experts = config.num_experts,
                          .intermediate = config.moe_intermediate_size,
                          .hidden = config.hidden_size};
  if (!IsPartOf(slice, shape)) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(slice), ": is not part of the model"));
  }
  Place out;
  const int64_t hidden = shape.hidden;
  ASSIGN_OR_RETURN(
      out.expert,
      FindExpert(checkpoint,
                 absl::StrCat("layers.", Index(slice.layer), ".mlp."),
                 slice.expert));
  out.rows = {slice.begin, slice.end, 0, hidden};
  out.columns = {0, hidden, slice.begin, slice.end};
  constexpr bool kStacked = true;
  const Expert& e = out.expert;
  ASSIGN_OR_RETURN(out.layout.gate, LayoutOf(e.gate, out.rows, kStacked));
  ASSIGN_OR_RETURN(out.layout.up, LayoutOf(e.up, out.rows, kStacked));
  ASSIGN_OR_RETURN(out.layout.down, LayoutOf(e.down, out.columns, kStacked));
  return out;
}

}  // namespace

absl::StatusOr<SliceLayout> LayoutOfSlice(const Checkpoint& checkpoint,
                                          const Slice& slice) {
  ASSIGN_OR_RETURN(const Place place, Find(checkpoint, slice));
  return place.layout;
}

absl::Status ReadSlice(const Checkpoint& checkpoint,
                       const Slice& slice,
                       const SliceLayout& layout,
                       const SliceSpans& out) {
  ASSIGN_OR_RETURN(const Place place, Find(checkpoint, slice));
  const auto read = [&](const Linear& linear,
                        const Cut& cut,
                        const WeightLayout& stored,
                        const WeightLayout& asked,
                        const WeightSpans& to) {
    if (stored != asked) {
      return BadTensor(linear.weight,
                       "its storage differs from that of the layer's other "
                       "experts");
    }
    return ReadPart(checkpoint, linear, cut, asked, to);
  };
  const Expert& e = place.expert;
  const SliceLayout& is = place.layout;
  RETURN_IF_ERROR(read(e.gate, place.rows, is.gate, layout.gate, out.gate));
  RETURN_IF_ERROR(read(e.up, place.rows, is.up, layout.up, out.up));
  return read(e.down, place.columns, is.down, layout.down, out.down);
}

}  // namespace conclave::checkpoint
