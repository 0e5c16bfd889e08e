// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "common/bf16.h"
#include "kernels/device_gdn.h"
#include "kernels/host/rows.h"
#include "kernels/host/stream.h"
#include "kernels/sequence_forms.h"

namespace conclave::kernels {
namespace {

using host::RowArray;

// The state of one sequence on its way through a step, as plain::Gdn has it.
class Walker {
 public:
  Walker(const GdnShape& shape, const DeviceGdnState& state)
      : shape_(shape),
        state_(state),
        channels_(static_cast<size_t>(shape.channels())),
        taps_(static_cast<size_t>(shape.conv_kernel)),
        cell_(static_cast<size_t>(shape.value_heads) * shape.key_dim *
              shape.value_dim),
        conv_((taps_ - 1) * channels_),
        recurrent_(cell_) {}

  // Before the row of `position`; slot < 0: zeros.
  void Begin(int32_t slot, int32_t position) {
    std::fill(conv_.begin(), conv_.end(), 0.0f);
    std::fill(recurrent_.begin(), recurrent_.end(), 0.0f);
    if (slot < 0) return;
    ReadRecurrent(slot);
    for (size_t i = 0; i + 1 < taps_; ++i) {
      const float* from =
          Ring(slot, position + static_cast<int32_t>(i + 1));  // oldest first
      std::copy_n(from, channels_, &conv_[i * channels_]);
    }
  }

  void Store(int32_t slot, int32_t position) {
    WriteRecurrent(slot);
    for (size_t i = 0; i + 1 < taps_; ++i) {
      // After the row: those of the positions before the next one.
      std::copy_n(&conv_[i * channels_],
                  channels_,
                  Ring(slot, position + static_cast<int32_t>(i + 2)));
    }
    // The fourth row is read no more; a GPU keeps it.
    std::copy_n(first_.begin(), channels_, Ring(slot, position + 1));
  }

  // One row, `projected` as kernels/device_gdn.h orders it.
  void Step(const Context& context,
            const GdnWeights& weights,
            const float* projected,
            std::span<float> y) {
    const auto values = static_cast<size_t>(shape_.value_heads) *
                        static_cast<size_t>(shape_.value_dim);
    const auto heads = static_cast<size_t>(shape_.value_heads);
    const float* z = projected + channels_;
    first_.assign(conv_.begin(), conv_.begin() + channels_);
    const int32_t slot = 0;
    plain::Gdn(context,
               shape_,
               weights,
               {.conv = conv_, .recurrent = recurrent_},
               {.row_begin = 0,
                .rows = 1,
                .position = 0,
                .cells = {},
                .state_slot_in = 0,
                .state_slots_out = {&slot, 1},
                .kv_blocks = {}},
               {.mixed = {projected, channels_},
                .z = {z, values},
                .b = {z + values, heads},
                .a = {z + values + heads, heads},
                .y = y});
  }

 private:
  void ReadRecurrent(int32_t slot) {
    const size_t at = slot * cell_;
    if (state_.dtype == GdnDType::kF32) {
      std::copy_n(
          static_cast<float*>(state_.recurrent) + at, cell_, &recurrent_[0]);
      return;
    }
    const auto* from = static_cast<uint16_t*>(state_.recurrent) + at;
    std::transform(from, from + cell_, recurrent_.begin(), FromBf16);
  }
  // The row after goes on from what is not rounded.
  void WriteRecurrent(int32_t slot) const {
    const size_t at = slot * cell_;
    if (state_.dtype == GdnDType::kF32) {
      std::copy_n(
          &recurrent_[0], cell_, static_cast<float*>(state_.recurrent) + at);
      return;
    }
    std::transform(recurrent_.begin(),
                   recurrent_.end(),
                   static_cast<uint16_t*>(state_.recurrent) + at,
                   ToBf16);
  }
  // The row of a position, or of one that is taps_ away from it.
  float* Ring(int32_t slot, int32_t position) const {
    const size_t at = static_cast<size_t>(slot) * taps_ +
                      static_cast<size_t>(position) % taps_;
    return state_.conv + at * channels_;
  }

  const GdnShape shape_;
  const DeviceGdnState state_;
  const size_t channels_, taps_, cell_;
  std::vector<float> conv_, recurrent_, first_;
};

}  // namespace

absl::Status DeviceGdn(DeviceQueue* queue,
                       const GdnShape& shape,
                       const DeviceGdnWeights& w,
                       const DeviceGdnState& state,
                       const DeviceStep& step,
                       GdnForm,
                       const float* projected,
                       float*,
                       const DeviceRows& y) {
  const auto heads = static_cast<size_t>(shape.value_heads);
  GdnWeights weights;
  weights.conv = {w.conv,
                  static_cast<size_t>(shape.channels()) * shape.conv_kernel};
  weights.a_log = {w.a_log, heads};
  weights.dt_bias = {w.dt_bias, heads};
  weights.norm = {w.norm, static_cast<size_t>(shape.value_dim)};
  const Context& context = host::StreamOf(queue)->context;
  host::StreamOf(queue)->Do([=] {
    const int64_t values = int64_t{shape.value_heads} * shape.value_dim;
    const int64_t width =
        shape.channels() + values + 2 * int64_t{shape.value_heads};
    const RowArray out(y, values);
    std::vector<float> row_out(static_cast<size_t>(values));
    for (int32_t s = 0; s < step.sequences; ++s) {
      Walker walker(shape, state);
      for (int32_t r = step.row_begin[s]; r < step.row_begin[s + 1]; ++r) {
        if (r == step.row_begin[s]) {
          walker.Begin(step.slot_in[s], step.position[r]);
        }
        const float* row = projected + r * width;
        walker.Step(context, weights, row, row_out);
        out.SetRow(r, row_out);
        if (step.slot_out[r] >= 0) {
          walker.Store(step.slot_out[r], step.position[r]);
        }
      }
    }
  });
  return absl::OkStatus();
}

size_t GdnScratchFloats(const GdnShape&, GdnForm, int32_t) { return 0; }

}  // namespace conclave::kernels
