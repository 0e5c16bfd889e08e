// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/group_decoder.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <utility>

#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/group_decoder_impl.h"
#include "coordinator/model/rank_sources.h"
#include "coordinator/model/shapes.h"

namespace conclave::model {

using kernels::StepBatch;

namespace {

// Of a step of one row per sequence.
std::vector<int32_t> AllRows(const StepBatch& batch) {
  std::vector<int32_t> out(batch.sequences.size());
  std::iota(out.begin(), out.end(), 0);
  return out;
}

}  // namespace

class GroupDecoder::Sampler final : public StepSampler {
 public:
  using Each = std::vector<std::unique_ptr<StepSampler>>;
  Sampler(Impl* group, Each each)
      : group_(*group), each_(std::make_shared<const Each>(std::move(each))) {}

  absl::Status SetCounts(int32_t slot,
                         std::span<const int32_t> counts) override {
    return (*each_)[0]->SetCounts(slot, counts);
  }
  absl::Status Run(const StepBatch& batch,
                   std::span<const int32_t> tokens,
                   std::span<const kernels::DeviceSampling> how,
                   std::span<int32_t> next) override {
    RETURN_IF_ERROR(group_.first().rank(0).CheckOneRowEach(batch, tokens));
    if (how.size() != tokens.size() || next.size() != tokens.size()) {
      return absl::InvalidArgumentError(
          "step: sampling and a next token per sequence");
    }
    struct Numbers {
      std::vector<kernels::DeviceSampling> how;
      std::vector<int32_t> next;
    };
    const auto numbers = std::make_shared<Numbers>();
    numbers->how.assign(how.begin(), how.end());
    numbers->next.resize(next.size());
    RETURN_IF_ERROR(group_.Run(
        group_.Cut(batch, tokens, AllRows(batch), /*whole=*/false),
        [numbers, each = each_](const GroupPart& part) {
          const auto begin = static_cast<size_t>(part.row_begin);
          const auto count = static_cast<size_t>(part.own->batch().rows);
          return (*each)[part.number]->Run(
              part.own->batch(),
              part.own->tokens(),
              std::span(numbers->how).subspan(begin, count),
              std::span(numbers->next).subspan(begin, count));
        },
        nullptr));
    std::copy(numbers->next.begin(), numbers->next.end(), next.begin());
    return absl::OkStatus();
  }

 private:
  Impl& group_;
  const std::shared_ptr<const Each> each_;  // [lanes]
};

DeviceDecoder::Options GroupDecoder::HalfOf(
    const DeviceDecoder::Options& each) {
  DeviceDecoder::Options half = each;
  half.rows_max = (each.rows_max + 1) / 2;
  half.sequences_max = (each.sequences_max + 1) / 2;
  return half;
}

absl::StatusOr<std::unique_ptr<GroupDecoder>> GroupDecoder::Create(
    std::vector<Member> members, const Options& options) {
  if (options.each.experts != nullptr || members.empty()) {
    return absl::InvalidArgumentError(
        "a group of GPUs holds all experts itself; leave workers out or use "
        "one GPU");
  }
  auto impl = std::make_unique<Impl>();
  impl->deadline = options.deadline;
  impl->micro_batches.emplace(options.micro_batches);
  impl->half = HalfOf(options.each);
  GroupLane::Options lane{.each = options.each,
                          .form = options.form,
                          .exchange = options.exchange,
                          .deadline = options.deadline,
                          .lanes = options.micro_batches.count == 1 ? 1 : 2};
  std::vector<GroupLane::Rank> ranks, beside;
  for (Member& member : members) {
    if (lane.lanes > 1) {
      ASSIGN_OR_RETURN(auto queue,
                       kernels::DeviceQueue::Create(member.queue->device()));
      beside.push_back({std::move(queue), std::nullopt, member.name});
    }
    const RankCut& cut = impl->cuts.emplace_back(member.weights.cut);
    if (cut.mixers) {
      impl->whole = member.weights.config;
      impl->whole.linear_num_key_heads =
          static_cast<int32_t>(cut.key_heads.end);
      impl->whole.linear_num_value_heads =
          static_cast<int32_t>(cut.value_heads.end);
    }
    ranks.push_back({std::move(member.queue),
                     std::move(member.weights),
                     std::move(member.name)});
  }
  ASSIGN_OR_RETURN(auto first,
                   GroupLane::Create(std::move(ranks), lane, nullptr));
  impl->lanes.push_back(std::move(first));
  if (lane.lanes > 1) {
    lane.each = impl->half;
    ASSIGN_OR_RETURN(
        auto second,
        GroupLane::Create(std::move(beside), lane, impl->lanes[0].get()));
    impl->lanes.push_back(std::move(second));
    impl->second = std::make_unique<RankThread>();
  }
  return std::unique_ptr<GroupDecoder>(new GroupDecoder(std::move(impl)));
}

GroupDecoder::GroupDecoder(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}

GroupDecoder::~GroupDecoder() {
  for (const auto& lane : impl_->lanes) lane->Abort();
  impl_->second.reset();
  while (!impl_->lanes.empty()) impl_->lanes.pop_back();
}

absl::StatusOr<StepOutput> GroupDecoder::Run(
    const StepBatch& batch,
    std::span<const int32_t> tokens,
    std::span<const int32_t> logit_rows,
    Probe* probe) {
  Impl& d = *impl_;
  RETURN_IF_ERROR(d.first().rank(0).Check(batch, tokens, logit_rows));
  const std::vector<GroupPart> parts =
      d.Cut(batch, tokens, logit_rows, /*whole=*/probe != nullptr);
  const auto outs =
      std::make_shared<std::array<StepOutput, limits::kMicroBatchesMax>>();
  const auto lead = [outs, probe](const GroupPart& part) -> absl::Status {
    ASSIGN_OR_RETURN(
        (*outs)[part.number],
        part.lane->rank(0).Run(
            part.own->batch(), part.own->tokens(), part.wanted, probe));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(d.Run(parts, lead, probe));
  if (parts.size() == 1) return (*outs)[0];
  d.logits.clear();
  d.hidden.clear();
  for (const StepOutput& out : *outs) {
    d.logits.insert(d.logits.end(), out.logits.begin(), out.logits.end());
    d.hidden.insert(d.hidden.end(), out.hidden.begin(), out.hidden.end());
  }
  return StepOutput{.logits = d.logits, .hidden = d.hidden};
}

absl::StatusOr<std::unique_ptr<StepSampler>> GroupDecoder::MakeSampler(
    int32_t vocab_used) {
  Sampler::Each each;
  ASSIGN_OR_RETURN(auto first, impl_->first().rank(0).MakeSampler(vocab_used));
  each.push_back(std::move(first));
  if (impl_->lanes.size() > 1) {
    ASSIGN_OR_RETURN(auto second,
                     impl_->lanes[1]->rank(0).MakeSampler(*each[0]));
    each.push_back(std::move(second));
  }
  return std::make_unique<Sampler>(impl_.get(), std::move(each));
}

absl::Status GroupDecoder::Health() const {
  RETURN_IF_ERROR(impl_->lost);
  for (const auto& lane : impl_->lanes) RETURN_IF_ERROR(lane->Health());
  return absl::OkStatus();
}

absl::Status GroupDecoder::RunGreedy(const StepBatch& batch,
                                     std::span<const int32_t> tokens,
                                     std::span<int32_t> next) {
  RETURN_IF_ERROR(impl_->first().rank(0).CheckOneRowEach(batch, tokens));
  const auto out = std::make_shared<std::vector<int32_t>>(next.size());
  RETURN_IF_ERROR(impl_->Run(
      impl_->Cut(batch, tokens, AllRows(batch), /*whole=*/false),
      [out](const GroupPart& part) {
        return part.lane->rank(0).RunGreedy(
            part.own->batch(),
            part.own->tokens(),
            std::span(*out).subspan(static_cast<size_t>(part.row_begin),
                                    part.own->batch().sequences.size()));
      },
      nullptr));
  std::copy(out->begin(), out->end(), next.begin());
  return absl::OkStatus();
}

absl::StatusOr<double> GroupDecoder::Time(const StepBatch& batch,
                                          std::span<const int32_t> tokens,
                                          uint32_t blocks,
                                          int32_t repeats) {
  RETURN_IF_ERROR(impl_->lost);
  const auto seconds = std::make_shared<double>(0);
  const auto own = std::make_shared<const OwnedBatch>(batch, tokens);
  GroupLane& lane = *impl_->lanes[0];
  const auto lead = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(
        *seconds,
        lane.rank(0).Time(own->batch(), own->tokens(), blocks, repeats));
    return absl::OkStatus();
  };
  const auto follow = [own, blocks, repeats](DeviceDecoder& rank) {
    return rank.Time(own->batch(), own->tokens(), blocks, repeats).status();
  };
  const absl::Status end[] = {lane.Together(lead, follow)};
  RETURN_IF_ERROR(impl_->Ended(end));
  return *seconds;
}

absl::Status GroupDecoder::MakeUpCache() {
  for (int32_t rank = 0; rank < ranks(); ++rank) {
    RETURN_IF_ERROR(impl_->first().rank(rank).MakeUpCache());
  }
  return absl::OkStatus();
}

uint64_t GroupDecoder::dense_bytes() const {
  uint64_t sum = 0;
  for (int32_t i = 0; i < ranks(); ++i) sum += rank(i).dense_bytes();
  return sum;
}
uint64_t GroupDecoder::expert_bytes() const {
  uint64_t sum = 0;
  for (int32_t i = 0; i < ranks(); ++i) sum += rank(i).expert_bytes();
  return sum;
}
StateBytes GroupDecoder::state_bytes() const {
  StateBytes sum;
  for (int32_t i = 0; i < ranks(); ++i) {
    const StateBytes each = rank(i).state_bytes();
    sum.per_kv_block += each.per_kv_block;
    sum.per_state_slot += each.per_state_slot;
  }
  return sum;
}

// Heads are held in rank order.
std::span<const float> GroupDecoder::GdnState(int32_t layer,
                                              int32_t slot) const {
  impl_->state.clear();
  for (int32_t i = 0; i < ranks(); ++i) {
    const std::span<const float> part = rank(i).GdnState(layer, slot);
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
  for (int32_t r = 0; r < ranks(); ++r) {
    const std::span<const float> part = rank(r).ConvState(layer, slot);
    const size_t own = part.size() / taps;
    size_t at = 0;
    for (const Range& range :
         GdnChannels(whole, impl_->cuts[static_cast<size_t>(r)])) {
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

int64_t GroupDecoder::steps_cut() const { return impl_->steps_cut; }
int32_t GroupDecoder::ranks() const { return impl_->first().ranks(); }
const DeviceDecoder& GroupDecoder::rank(int32_t rank) const {
  return impl_->first().rank(rank);
}
kernels::DeviceQueue* GroupDecoder::queue(int32_t rank) {
  return impl_->first().rank(rank).queue();
}

}  // namespace conclave::model
