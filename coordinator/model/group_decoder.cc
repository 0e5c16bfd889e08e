// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/group_decoder.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/model/device_memory.h"
#include "coordinator/model/rank_sources.h"
#include "coordinator/model/rank_thread.h"
#include "coordinator/model/shapes.h"

namespace conclave::model {

using kernels::DeviceGroup;
using kernels::StepBatch;
using RankFn = std::function<absl::Status(DeviceDecoder&)>;

struct GroupDecoder::Impl {
  // `lead` in this thread for rank 0, `follow` in the others' for theirs.
  absl::Status Together(const std::function<absl::Status()>& lead,
                        const RankFn& follow);
  absl::Status Ended(const std::vector<absl::Status>& ends);
  // A step of these numbers: what the others do for it.
  RankFn Follow(const StepBatch& batch,
                std::span<const int32_t> tokens,
                bool recorded);

  absl::Duration deadline;
  // Freed from the last to the first: threads, then decoders, then the group.
  std::unique_ptr<DeviceGroup> group;
  std::vector<std::unique_ptr<DeviceDecoder>> ranks;
  std::vector<std::unique_ptr<RankThread>> threads;  // [ranks - 1]
  std::vector<std::string> names;
  std::vector<RankCut> cuts;
  checkpoint::ModelConfig whole;  // as to GDN
  absl::Status lost;              // a rank that never came back
  std::vector<float> state;
};

namespace {

// A rank that did not fail but waited for one that did.
bool Waited(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

absl::Status GroupDecoder::Impl::Ended(const std::vector<absl::Status>& ends) {
  const absl::Status* worst = nullptr;
  for (const absl::Status& end : ends) {
    if (end.ok()) continue;
    const bool worse = worst == nullptr || (Waited(*worst) && !Waited(end)) ||
                       (absl::IsAborted(*worst) && !absl::IsAborted(end));
    if (worse) worst = &end;
  }
  if (worst == nullptr) return absl::OkStatus();
  const absl::Status reset = group->Reset();
  if (!reset.ok()) {
    lost = absl::UnavailableError(
        absl::StrCat("the group of GPUs cannot go on: ", reset.message()));
  }
  return Waited(*worst) ? absl::UnavailableError(worst->message()) : *worst;
}

absl::Status GroupDecoder::Impl::Together(
    const std::function<absl::Status()>& lead, const RankFn& follow) {
  RETURN_IF_ERROR(lost);
  for (size_t i = 0; i < threads.size(); ++i) {
    RETURN_IF_ERROR(threads[i]->Begin([this, follow, i] {
      absl::Status status = follow(*ranks[i + 1]);
      if (!status.ok()) group->Abort();
      return status;
    }));
  }
  std::vector<absl::Status> ends = {lead()};
  if (!ends[0].ok()) group->Abort();
  // Each wait for one another ends within the deadline; what a rank does
  // between two of them takes less.
  const absl::Duration within = 2 * deadline;
  for (size_t i = 0; i < threads.size(); ++i) {
    const std::optional<absl::Status> end = threads[i]->End(within);
    if (end.has_value()) {
      ends.push_back(*end);
      continue;
    }
    group->Abort();
    lost = absl::UnavailableError(
        absl::StrCat("rank ",
                     i + 1,
                     " (",
                     names[i + 1],
                     ") did not end its step within ",
                     absl::FormatDuration(within),
                     "; restart, and look at that GPU if it happens again"));
    return lost;
  }
  return Ended(ends);
}

RankFn GroupDecoder::Impl::Follow(const StepBatch& batch,
                                  std::span<const int32_t> tokens,
                                  bool recorded) {
  auto own = std::make_shared<const OwnedBatch>(batch, tokens);
  return [own, recorded](DeviceDecoder& rank) {
    return rank.Follow(own->batch(), own->tokens(), recorded);
  };
}

class GroupDecoder::Sampler final : public StepSampler {
 public:
  Sampler(Impl* group, std::unique_ptr<StepSampler> first)
      : group_(*group), first_(std::move(first)) {}

  absl::Status SetCounts(int32_t slot,
                         std::span<const int32_t> counts) override {
    return first_->SetCounts(slot, counts);
  }
  absl::Status Run(const StepBatch& batch,
                   std::span<const int32_t> tokens,
                   std::span<const kernels::DeviceSampling> how,
                   std::span<int32_t> next) override {
    RETURN_IF_ERROR(group_.ranks[0]->CheckOneRowEach(batch, tokens));
    return group_.Together(
        [&] { return first_->Run(batch, tokens, how, next); },
        group_.Follow(batch, tokens, true));
  }

 private:
  Impl& group_;
  std::unique_ptr<StepSampler> first_;
};

absl::StatusOr<std::unique_ptr<GroupDecoder>> GroupDecoder::Create(
    std::vector<Member> members, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->deadline = options.deadline;
  std::vector<kernels::DeviceQueue*> queues;
  for (const Member& member : members) {
    queues.push_back(member.queue.get());
    impl->names.push_back(member.name);
    const RankCut& cut = impl->cuts.emplace_back(member.weights.cut);
    if (!cut.mixers) continue;
    impl->whole = member.weights.config;
    impl->whole.linear_num_key_heads = static_cast<int32_t>(cut.key_heads.end);
    impl->whole.linear_num_value_heads =
        static_cast<int32_t>(cut.value_heads.end);
  }
  if (options.each.experts != nullptr || members.empty()) {
    return absl::InvalidArgumentError(
        "a group of GPUs holds all experts itself; leave workers out or use "
        "one GPU");
  }
  ASSIGN_OR_RETURN(impl->group,
                   DeviceGroup::Create(
                       queues,
                       {.rows_max = FilledRowsMax(options.each.rows_max,
                                                  options.each.sequences_max),
                        .cols = members[0].weights.config.hidden_size,
                        .deadline = options.deadline,
                        .exchange = options.exchange}));
  for (size_t i = 0; i < members.size(); ++i) {
    DeviceDecoder::Options each = options.each;
    each.group = impl->group.get();
    each.rank = static_cast<int32_t>(i);
    each.form = options.form;
    each.rank_names = impl->names;
    each.name = absl::StrCat("rank ", i, " (", members[i].name, ")");
    ASSIGN_OR_RETURN(
        auto rank,
        DeviceDecoder::Create(
            std::move(members[i].queue), std::move(members[i].weights), each));
    impl->ranks.push_back(std::move(rank));
    if (i > 0) impl->threads.push_back(std::make_unique<RankThread>());
  }
  return std::unique_ptr<GroupDecoder>(new GroupDecoder(std::move(impl)));
}

GroupDecoder::GroupDecoder(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}

GroupDecoder::~GroupDecoder() {
  impl_->group->Abort();
  impl_->threads.clear();
}

absl::StatusOr<StepOutput> GroupDecoder::Run(
    const StepBatch& batch,
    std::span<const int32_t> tokens,
    std::span<const int32_t> logit_rows,
    Probe* probe) {
  DeviceDecoder& first = *impl_->ranks[0];
  RETURN_IF_ERROR(first.Check(batch, tokens, logit_rows));
  StepOutput out;
  const auto lead = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(out, first.Run(batch, tokens, logit_rows, probe));
    return absl::OkStatus();
  };
  const bool recorded = DeviceDecoder::IsRecorded(batch, logit_rows, probe);
  RETURN_IF_ERROR(
      impl_->Together(lead, impl_->Follow(batch, tokens, recorded)));
  return out;
}

absl::StatusOr<std::unique_ptr<StepSampler>> GroupDecoder::MakeSampler(
    int32_t vocab_used) {
  ASSIGN_OR_RETURN(auto first, impl_->ranks[0]->MakeSampler(vocab_used));
  return std::make_unique<Sampler>(impl_.get(), std::move(first));
}

absl::Status GroupDecoder::Health() const {
  RETURN_IF_ERROR(impl_->lost);
  for (const auto& rank : impl_->ranks) RETURN_IF_ERROR(rank->Health());
  return absl::OkStatus();
}

absl::Status GroupDecoder::RunGreedy(const StepBatch& batch,
                                     std::span<const int32_t> tokens,
                                     std::span<int32_t> next) {
  DeviceDecoder& first = *impl_->ranks[0];
  RETURN_IF_ERROR(first.CheckOneRowEach(batch, tokens));
  return impl_->Together([&] { return first.RunGreedy(batch, tokens, next); },
                         impl_->Follow(batch, tokens, true));
}

absl::StatusOr<double> GroupDecoder::Time(const StepBatch& batch,
                                          std::span<const int32_t> tokens,
                                          uint32_t blocks,
                                          int32_t repeats) {
  double seconds = 0;
  const auto own = std::make_shared<const OwnedBatch>(batch, tokens);
  const auto lead = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(seconds,
                     impl_->ranks[0]->Time(batch, tokens, blocks, repeats));
    return absl::OkStatus();
  };
  const auto follow = [own, blocks, repeats](DeviceDecoder& rank) {
    return rank.Time(own->batch(), own->tokens(), blocks, repeats).status();
  };
  RETURN_IF_ERROR(impl_->Together(lead, follow));
  return seconds;
}

absl::Status GroupDecoder::MakeUpCache() {
  for (const auto& rank : impl_->ranks) RETURN_IF_ERROR(rank->MakeUpCache());
  return absl::OkStatus();
}

uint64_t GroupDecoder::dense_bytes() const {
  uint64_t sum = 0;
  for (const auto& rank : impl_->ranks) sum += rank->dense_bytes();
  return sum;
}
uint64_t GroupDecoder::expert_bytes() const {
  uint64_t sum = 0;
  for (const auto& rank : impl_->ranks) sum += rank->expert_bytes();
  return sum;
}
StateBytes GroupDecoder::state_bytes() const {
  StateBytes sum;
  for (const auto& rank : impl_->ranks) {
    const StateBytes each = rank->state_bytes();
    sum.per_kv_block += each.per_kv_block;
    sum.per_state_slot += each.per_state_slot;
  }
  return sum;
}

// Heads are held in rank order.
std::span<const float> GroupDecoder::GdnState(int32_t layer,
                                              int32_t slot) const {
  impl_->state.clear();
  for (const auto& rank : impl_->ranks) {
    const std::span<const float> part = rank->GdnState(layer, slot);
    impl_->state.insert(impl_->state.end(), part.begin(), part.end());
  }
  return impl_->state;
}

// Each rank's channels where they stand in the whole's rows.
std::span<const float> GroupDecoder::ConvState(int32_t layer,
                                               int32_t slot) const {
  const checkpoint::ModelConfig& whole = impl_->whole;
  const size_t taps = static_cast<size_t>(whole.linear_conv_kernel_dim) - 1;
  const auto channels = static_cast<size_t>(GdnShapeOf(whole).channels());
  impl_->state.assign(taps * channels, 0.0f);
  for (size_t r = 0; r < impl_->ranks.size(); ++r) {
    const std::span<const float> part = impl_->ranks[r]->ConvState(layer, slot);
    const size_t own = part.size() / taps;
    size_t at = 0;
    for (const Range& range : GdnChannels(whole, impl_->cuts[r])) {
      for (size_t tap = 0; tap < taps; ++tap) {
        std::copy_n(part.begin() + tap * own + at,
                    range.size(),
                    impl_->state.begin() + tap * channels + range.begin);
      }
      at += static_cast<size_t>(range.size());
    }
  }
  return impl_->state;
}

int32_t GroupDecoder::ranks() const {
  return static_cast<int32_t>(impl_->ranks.size());
}
const DeviceDecoder& GroupDecoder::rank(int32_t rank) const {
  return *impl_->ranks[static_cast<size_t>(rank)];
}
kernels::DeviceQueue* GroupDecoder::queue(int32_t rank) {
  return impl_->ranks[static_cast<size_t>(rank)]->queue();
}

}  // namespace conclave::model
