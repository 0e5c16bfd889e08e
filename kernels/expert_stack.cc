// SPDX-License-Identifier: Apache-2.0
#include "kernels/expert_stack.h"

#include "common/status_macros.h"

namespace conclave::kernels {
namespace {

MatrixPlan GateUp(const ExpertLayouts& each, int32_t stack) {
  return {.parts = {each.gate, each.up}, .stack = stack, .interleaved = true};
}

MatrixPlan Down(const ExpertLayouts& each, int32_t stack) {
  return {.parts = {each.down}, .stack = stack};
}

}  // namespace

WeightLayout LayoutOf(const WeightView& view) {
  WeightLayout out{.dtype = view.dtype, .rows = view.rows, .cols = view.cols};
  if (view.packing == Packing::kPlain) return out;
  const bool affine = view.packing == Packing::kAffine;
  out.dtype = affine ? DType::kU32 : DType::kF8E4M3;
  out.bits = view.bits;
  out.group = view.group;
  out.scale_dtype = view.scale_dtype;
  out.biases = view.biases != nullptr;
  return out;
}

ExpertLayouts LayoutsOf(const ExpertViews& views) {
  return {LayoutOf(views.gate), LayoutOf(views.up), LayoutOf(views.down)};
}

ExpertViews ViewsOf(const ShardLayerWeights& layer, int32_t i) {
  return {Rows(layer.gate, int64_t{i} * layer.width, layer.width),
          Rows(layer.up, int64_t{i} * layer.width, layer.width),
          Rows(layer.down, int64_t{i} * layer.hidden, layer.hidden)};
}

uint64_t ExpertStackBytes(const ExpertLayouts& each, int32_t stack) {
  const uint64_t gate_up = MatrixBytes(GateUp(each, stack));
  const uint64_t down = MatrixBytes(Down(each, stack));
  return gate_up == 0 || down == 0 ? 0 : gate_up + down;
}

absl::StatusOr<DeviceExpertStack> MakeExpertStack(DeviceQueue* queue,
                                                  const ExpertLayouts& each,
                                                  int32_t stack,
                                                  const std::string& what) {
  DeviceExpertStack out;
  ASSIGN_OR_RETURN(out.gate_up, MakeMatrix(queue, GateUp(each, stack), what));
  ASSIGN_OR_RETURN(out.down, MakeMatrix(queue, Down(each, stack), what));
  return out;
}

absl::Status LoadExpert(MatrixLoader* loader,
                        const ExpertViews& views,
                        int32_t index,
                        DeviceExpertStack* to) {
  const ExpertLayouts each = LayoutsOf(views);
  const MatrixPlan gate_up = GateUp(each, to->gate_up.stack);
  RETURN_IF_ERROR(loader->Load(views.gate, gate_up, index, 0, &to->gate_up));
  RETURN_IF_ERROR(loader->Load(views.up, gate_up, index, 1, &to->gate_up));
  return loader->Load(
      views.down, Down(each, to->down.stack), index, 0, &to->down);
}

}  // namespace conclave::kernels
