// SPDX-License-Identifier: Apache-2.0
// Steps of a group of devices: whole in one lane, or cut over two.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/model/group_decoder_impl.h"

namespace conclave::model {

using kernels::StepBatch;

namespace {

absl::Status Together(const GroupPart& part,
                      const GroupLead& lead,
                      const Probe* probe) {
  const bool recorded =
      DeviceDecoder::IsRecorded(part.own->batch(), part.wanted, probe);
  return part.lane->Together(
      [&] { return lead(part); },
      [own = part.own, wanted = part.wanted, recorded](DeviceDecoder& rank) {
        return rank.Follow(own->batch(), own->tokens(), wanted, recorded);
      });
}

}  // namespace

std::vector<GroupPart> GroupDecoder::Impl::Cut(const StepBatch& batch,
                                               std::span<const int32_t> tokens,
                                               std::span<const int32_t> wanted,
                                               bool whole) {
  const bool may_cut = !whole && lanes.size() > 1 && FitsHalf(batch, tokens) &&
                       std::is_sorted(wanted.begin(), wanted.end());
  const MicroBatches cut(batch, tokens, micro_batches->Begin(batch, may_cut));
  std::vector<GroupPart> out;
  for (const MicroBatch& micro : cut.all()) {
    GroupPart& part = out.emplace_back();
    part.number = out.size() - 1;
    part.lane = lanes[part.number].get();
    part.own = std::make_shared<OwnedBatch>(micro.batch, micro.tokens);
    part.row_begin = micro.row_begin;
    for (const int32_t row : wanted) {
      const int32_t own = row - micro.row_begin;
      if (own >= 0 && own < micro.batch.rows) part.wanted.push_back(own);
    }
  }
  return out;
}

bool GroupDecoder::Impl::FitsHalf(const StepBatch& batch,
                                  std::span<const int32_t> tokens) const {
  if (batch.sequences.size() < 2) return false;
  const MicroBatches cut(batch, tokens, 2);
  const StepBatch& later = cut.all()[1].batch;
  return later.rows <= half.rows_max &&
         std::ssize(later.sequences) <= std::ptrdiff_t{half.sequences_max};
}

absl::Status GroupDecoder::Impl::RunTwo(const std::vector<GroupPart>& parts,
                                        const GroupLead& lead,
                                        const Probe* probe) {
  GroupLane& here = *parts[0].lane;
  RETURN_IF_ERROR(
      second->Begin([&here, part = parts[1], lead, probe]() -> absl::Status {
        const absl::Status status = Together(part, lead, probe);
        if (!status.ok()) here.Abort();
        return status;
      }));
  absl::Status ends[] = {Together(parts[0], lead, probe), absl::OkStatus()};
  if (!ends[0].ok()) parts[1].lane->Abort();
  // Longer than either lane waits for its ranks.
  const absl::Duration within = 4 * deadline;
  const std::optional<absl::Status> end = second->End(within);
  if (end.has_value()) {
    ends[1] = *end;
    return Ended(ends);
  }
  lost = absl::UnavailableError(
      absl::StrCat("the second micro-batch did not end within ",
                   absl::FormatDuration(within),
                   "; restart, and look at GPU 0 if it happens again"));
  return lost;
}

absl::Status GroupDecoder::Impl::Run(const std::vector<GroupPart>& parts,
                                     const GroupLead& lead,
                                     const Probe* probe) {
  RETURN_IF_ERROR(lost);
  if (parts.size() > 1) {
    RETURN_IF_ERROR(RunTwo(parts, lead, probe));
    ++steps_cut;
  } else {
    const absl::Status end[] = {Together(parts[0], lead, probe)};
    RETURN_IF_ERROR(Ended(end));
  }
  micro_batches->End();
  return absl::OkStatus();
}

absl::Status GroupDecoder::Impl::Ended(std::span<const absl::Status> ends) {
  const absl::Status* cause = CauseOf(ends);
  if (cause == nullptr) return absl::OkStatus();
  for (const auto& lane : lanes) {
    if (!lane->lost().ok()) {
      lost = lane->lost();
      return lost;
    }
  }
  for (const auto& lane : lanes) {
    const absl::Status reset = lane->Reset();
    if (reset.ok()) continue;
    lost = absl::UnavailableError(
        absl::StrCat("the group of GPUs cannot go on: ", reset.message()));
  }
  return Waited(*cause) ? absl::UnavailableError(cause->message()) : *cause;
}

}  // namespace conclave::model
