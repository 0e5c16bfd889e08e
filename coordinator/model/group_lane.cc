// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/group_lane.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/model/device_memory.h"

namespace conclave::model {

using kernels::DeviceGroup;

bool Waited(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsDeadlineExceeded(status);
}

const absl::Status* CauseOf(std::span<const absl::Status> ends) {
  const absl::Status* worst = nullptr;
  for (const absl::Status& end : ends) {
    if (end.ok()) continue;
    const bool worse = worst == nullptr || (Waited(*worst) && !Waited(end)) ||
                       (absl::IsAborted(*worst) && !absl::IsAborted(end));
    if (worse) worst = &end;
  }
  return worst;
}

DeviceGroup::Options ExchangesOf(int32_t ranks,
                                 int32_t hidden,
                                 int32_t vocab,
                                 const DeviceDecoder::Options& each) {
  return {.rows_max = FilledRowsMax(each.rows_max, each.sequences_max),
          .cols = hidden,
          .columns = HeadBounds(vocab, ranks),
          .gathered_max = LogitRowsMax(
              vocab, each.rows_max, each.sequences_max, each.logit_bytes)};
}

absl::StatusOr<std::unique_ptr<GroupLane>> GroupLane::Create(
    std::vector<Rank> ranks, const Options& options, const GroupLane* first) {
  auto out = std::unique_ptr<GroupLane>(new GroupLane);
  out->deadline_ = options.deadline;
  std::vector<kernels::DeviceQueue*> queues;
  for (const Rank& rank : ranks) {
    queues.push_back(rank.queue.get());
    out->names_.push_back(rank.name);
  }
  const DeviceGroup::Options* of =
      first != nullptr ? &first->group_->options() : nullptr;
  DeviceGroup::Options exchanges = ExchangesOf(
      static_cast<int32_t>(ranks.size()),
      of != nullptr ? of->cols : ranks[0].weights->config.hidden_size,
      of != nullptr ? of->columns.back() : ranks[0].weights->config.vocab_size,
      options.each);
  exchanges.lanes = options.lanes;
  exchanges.deadline = options.deadline;
  exchanges.exchange = options.exchange;
  ASSIGN_OR_RETURN(out->group_, DeviceGroup::Create(queues, exchanges));
  for (size_t i = 0; i < ranks.size(); ++i) {
    DeviceDecoder::Options each = options.each;
    each.group = out->group_.get();
    each.rank = static_cast<int32_t>(i);
    each.form = options.form;
    each.rank_names = out->names_;
    each.name = absl::StrCat("rank ", i, " (", ranks[i].name, ")");
    auto made = first != nullptr
                    ? DeviceDecoder::CreateLane(
                          std::move(ranks[i].queue), *first->ranks_[i], each)
                    : DeviceDecoder::Create(std::move(ranks[i].queue),
                                            *std::move(ranks[i].weights),
                                            each);
    RETURN_IF_ERROR(made.status());
    out->ranks_.push_back(*std::move(made));
    if (i > 0) out->threads_.push_back(std::make_unique<RankThread>());
  }
  // States are filled before another lane's queue uses them.
  for (const auto& rank : out->ranks_) {
    RETURN_IF_ERROR(rank->queue()->Wait());
  }
  return out;
}

GroupLane::~GroupLane() {
  if (group_ != nullptr) group_->Abort();
}

absl::Status GroupLane::Together(const std::function<absl::Status()>& lead,
                                 const Follow& follow) {
  RETURN_IF_ERROR(lost_);
  for (size_t i = 0; i < threads_.size(); ++i) {
    RETURN_IF_ERROR(threads_[i]->Begin([this, follow, i] {
      absl::Status status = follow(*ranks_[i + 1]);
      if (!status.ok()) group_->Abort();
      return status;
    }));
  }
  std::vector<absl::Status> ends = {lead()};
  if (!ends[0].ok()) group_->Abort();
  // Each wait for one another ends within the deadline; what a rank does
  // between two of them takes less.
  const absl::Duration within = 2 * deadline_;
  for (size_t i = 0; i < threads_.size(); ++i) {
    const std::optional<absl::Status> end = threads_[i]->End(within);
    if (end.has_value()) {
      ends.push_back(*end);
      continue;
    }
    group_->Abort();
    lost_ = absl::UnavailableError(
        absl::StrCat("rank ",
                     i + 1,
                     " (",
                     names_[i + 1],
                     ") did not end its step within ",
                     absl::FormatDuration(within),
                     "; restart, and look at that GPU if it happens again"));
    return lost_;
  }
  const absl::Status* cause = CauseOf(ends);
  return cause == nullptr ? absl::OkStatus() : *cause;
}

absl::Status GroupLane::Health() const {
  RETURN_IF_ERROR(lost_);
  for (const auto& rank : ranks_) RETURN_IF_ERROR(rank->Health());
  return absl::OkStatus();
}

}  // namespace conclave::model
