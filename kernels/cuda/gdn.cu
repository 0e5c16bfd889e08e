// SPDX-License-Identifier: Apache-2.0
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/gdn_chunk.cuh"

namespace conclave::kernels {
namespace {

using cuda::gdn::kHeadDim;
using cuda::gdn::kTaps;

// Floats of a row after the convolution, with four gates of each head.
size_t MixedFloats(const GdnShape& shape) {
  return static_cast<size_t>(shape.channels() + 4 * shape.value_heads);
}

// Of a row of the inverse, and of the scores, of each head's windows.
size_t WindowFloats(const GdnShape& shape) {
  return static_cast<size_t>(shape.value_heads) * cuda::gdn::kWindow;
}

// Of a grid's second and third dimension.
constexpr int32_t kGridLimit = 65535;

absl::Status Check(const GdnShape& s, const DeviceStep& step) {
  const auto refuse = [](auto... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("Gated DeltaNet on CUDA: ", what...));
  };
  if (s.key_dim != kHeadDim || s.value_dim != kHeadDim) {
    return refuse("heads of ",
                  s.key_dim,
                  " keys and ",
                  s.value_dim,
                  " values; only 128 and 128 are supported");
  }
  if (s.conv_kernel != kTaps) {
    return refuse(s.conv_kernel, " convolution taps; only 4 are supported");
  }
  if (s.key_heads < 1 || s.value_heads < 1 ||
      s.value_heads % s.key_heads != 0 || s.value_heads % 2 != 0 ||
      s.value_heads > kGridLimit) {
    return refuse(s.key_heads,
                  " key heads and ",
                  s.value_heads,
                  " value heads; the second must be even and a multiple of "
                  "the first");
  }
  if (step.sequences < 1 || step.sequences > kGridLimit ||
      step.rows < step.sequences ||
      (step.rows_max == 1 && step.rows != step.sequences)) {
    return refuse("a step of ",
                  step.rows,
                  " rows (at most ",
                  step.rows_max,
                  " each) of ",
                  step.sequences,
                  " sequences");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DeviceGdn(DeviceQueue* queue,
                       const GdnShape& shape,
                       const DeviceGdnWeights& weights,
                       const DeviceGdnState& state,
                       const DeviceStep& step,
                       GdnForm form,
                       const float* projected,
                       float* scratch,
                       const DeviceRows& y) {
  RETURN_IF_ERROR(Check(shape, step));
  const auto rows = static_cast<size_t>(step.rows);
  const size_t mixed = rows * static_cast<size_t>(shape.channels());
  float* const windows = scratch + rows * MixedFloats(shape);
  const cuda::gdn::Task task{
      .weights = weights,
      .state = state,
      .step = step,
      .projected = projected,
      .y = y.data,
      .y_bf16 = y.bf16,
      .key_heads = shape.key_heads,
      .value_heads = shape.value_heads,
      .eps = shape.eps,
      .mixed = scratch,
      .gates = reinterpret_cast<float4*>(scratch + mixed),
      .inverse = windows,
      .scores = windows + rows * WindowFloats(shape)};
  if (step.rows_max == 1) return cuda::gdn::Decode(queue, task);
  RETURN_IF_ERROR(cuda::gdn::ConvolveRows(queue, task));
  const bool chunked = form == GdnForm::kChunked &&
                       step.rows_max >= kGdnChunkedRows &&
                       cuda::gdn::CanRunChunks(*queue);
  RETURN_IF_ERROR(chunked ? cuda::gdn::RunChunks(queue, task)
                          : cuda::gdn::RunRows(queue, task));
  return cuda::gdn::NormRows(queue, task);
}

size_t GdnScratchFloats(const GdnShape& shape, GdnForm form, int32_t rows) {
  const size_t windows =
      form == GdnForm::kChunked ? 2 * WindowFloats(shape) : 0;
  return static_cast<size_t>(rows) * (MixedFloats(shape) + windows);
}

}  // namespace conclave::kernels
