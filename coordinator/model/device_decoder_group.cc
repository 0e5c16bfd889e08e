// SPDX-License-Identifier: Apache-2.0
// A device decoder as one rank of a group: norms are where ranks meet.
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/model/device_decoder_impl.h"
#include "coordinator/model/step_check.h"

namespace conclave::model {

using kernels::DeviceAddend;
using kernels::StepBatch;

// A layer has two sums: after the mixer and after the experts.
absl::Status DeviceDecoder::Impl::Norm(const Slice& slice,
                                       const DeviceAddend& addend,
                                       int32_t number,
                                       const float* w,
                                       bool with_low) {
  if (!Launches(kNorms)) return absl::OkStatus();
  const float eps = weights.config.rms_norm_eps;
  void* low = with_low ? m.low(slice.row) : nullptr;
  if (options.group == nullptr || number < 0 || !Launches(kExchange)) {
    return kernels::DeviceAddNorm(queue.get(),
                                  slice.step.rows,
                                  weights.config.hidden_size,
                                  addend,
                                  w,
                                  eps,
                                  nullptr,
                                  m.x(slice.row),
                                  m.u(slice.row),
                                  low);
  }
  const bool one = options.form == GroupForm::kLone && number % 2 == 0;
  return options.group->AddNorm(options.rank,
                                {.number = number,
                                 .only = one ? 0 : -1,
                                 .rows = slice.step.rows,
                                 .part = addend,
                                 .w = w,
                                 .eps = eps,
                                 .x = m.x(slice.row),
                                 .u = m.u(slice.row),
                                 .low = low});
}

absl::Status DeviceDecoder::Impl::Gather(int32_t rows, bool again) {
  // Without sums nothing keeps ranks together.
  const bool meets = Launches(kNorms) && Launches(kExchange);
  if (options.group == nullptr || !meets) return absl::OkStatus();
  return options.group->GatherColumns(
      options.rank, {.rows = rows, .part = m.logits(), .again = again});
}

absl::Status DeviceDecoder::Impl::Joined() {
  if (options.linked != nullptr) return options.linked->Wait();
  if (options.group == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const kernels::DeviceGroup::End end,
                   options.group->Finish(options.rank));
  if (end.whole) return absl::OkStatus();
  if (end.missed < 0) {
    return absl::AbortedError(
        absl::StrCat(options.name, ": another rank ended the step"));
  }
  const std::string where =
      end.number == kernels::DeviceGroup::kGathering
          ? "head's exchange"
          : absl::StrCat("sum after the ",
                         end.number % 2 == 0 ? "mixer" : "experts",
                         " of layer ",
                         end.number / 2);
  return absl::DeadlineExceededError(
      absl::StrCat("rank ",
                   end.missed,
                   " (",
                   options.rank_names[static_cast<size_t>(end.missed)],
                   ") did not come to the ",
                   where,
                   " within ",
                   absl::FormatDuration(options.group->options().deadline),
                   "; rank ",
                   options.rank,
                   " waited for it"));
}

bool DeviceDecoder::IsRecorded(const StepBatch& batch,
                               std::span<const int32_t> logit_rows,
                               const Probe* probe) {
  const auto wanted = static_cast<int32_t>(logit_rows.size());
  return DeviceStepArrays::SizesOf(batch, wanted).rows_max == 1 &&
         wanted == batch.rows && probe == nullptr;
}

absl::Status DeviceDecoder::Impl::Follow(const StepBatch& batch,
                                         std::span<const int32_t> tokens,
                                         std::span<const int32_t> wanted,
                                         bool recorded) {
  NotePositions(batch);
  if (recorded) {
    Sizes sizes;
    RETURN_IF_ERROR(Recorded(batch, tokens, &sizes));
    return Joined();
  }
  const Sizes sizes =
      DeviceStepArrays::SizesOf(batch, static_cast<int32_t>(wanted.size()));
  RETURN_IF_ERROR(Upload(sizes, batch, tokens, wanted, 0, false));
  RETURN_IF_ERROR(Layers(nullptr));
  return Head(sizes);
}

absl::Status DeviceDecoder::Follow(const StepBatch& batch,
                                   std::span<const int32_t> tokens,
                                   std::span<const int32_t> logit_rows,
                                   bool recorded) {
  RETURN_IF_ERROR(impl_->lost);
  return impl_->Told(impl_->Follow(batch, tokens, logit_rows, recorded));
}

absl::Status DeviceDecoder::Check(const StepBatch& batch,
                                  std::span<const int32_t> tokens,
                                  std::span<const int32_t> logit_rows) const {
  RETURN_IF_ERROR(CheckStep(
      impl_->weights.config, impl_->options.sizes, batch, tokens, logit_rows));
  return impl_->CheckRoom(batch);
}

absl::Status DeviceDecoder::CheckOneRowEach(
    const StepBatch& batch, std::span<const int32_t> tokens) const {
  return impl_->CheckOneRowEach(batch, tokens);
}

}  // namespace conclave::model
