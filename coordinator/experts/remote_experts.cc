// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/remote_experts.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "common/transport/wire.h"
#include "coordinator/experts/combine.h"
#include "coordinator/experts/exchange_metrics.h"
#include "coordinator/experts/plan.h"
#include "coordinator/experts/reply.h"
#include "coordinator/experts/rows.h"

namespace conclave::experts {
namespace {

using transport::Delivery;
using transport::ExpertReply;
using transport::ExpertRequest;
using transport::FrameTag;

// Answers to older requests that one layer puts up with.
constexpr int32_t kStaleFramesMax = 1024;

// A worker that owes an answer, or has given it.
struct Awaited {
  const HolderPart* part = nullptr;
  bool answered = false;
  Buffer frame;  // `reply` points into it
  ExpertReply reply;
};

// The work between Start and Finish.
struct Pending {
  FrameTag tag;
  std::span<const float> x;
  DispatchPlan plan;
  std::vector<Awaited> awaited;
  absl::Time deadline;
  int32_t open = 0;  // of awaited, not answered yet
};

}  // namespace

struct RemoteExperts::Impl {
  explicit Impl(RemoteOptions given, PlacementIndex placement)
      : options(std::move(given)),
        index(std::move(placement)),
        context{options.backend, options.pool, &workspace, options.activations},
        metrics(options.metrics) {}

  absl::Status Error(absl::StatusCode code,
                     const std::string& workers,
                     const FrameTag& tag,
                     absl::string_view what) const {
    return absl::Status(code,
                        absl::StrCat("worker ",
                                     workers,
                                     ": exchange, layer ",
                                     Index(tag.layer),
                                     ": ",
                                     what));
  }

  absl::Status SendPart(const HolderPart& part, const Pending& work);
  absl::Status Await(Pending* work);
  absl::StatusOr<bool> Accept(Delivery delivery, Pending* work);
  absl::Status Silence(const Pending& work) const;
  void AddReplies(const Pending& work, std::vector<Partial>* partials);

  RemoteOptions options;
  PlacementIndex index;
  kernels::Workspace workspace;
  kernels::Context context;
  ExchangeMetrics metrics;
  uint64_t step = 0;
  uint64_t ticket = 0;  // of the work begun last
  std::optional<Pending> pending;
};

absl::Status RemoteExperts::Impl::SendPart(const HolderPart& part,
                                           const Pending& work) {
  const int32_t hidden = index.shape().hidden;
  kernels::Workspace::Scope scope(&workspace);
  std::span<const float> rows = work.x;
  const size_t size = part.tokens.size() * hidden;
  if (rows.size() != size) {
    std::span<float> gathered = workspace.Floats(size);
    GatherRows(work.x, part.tokens, hidden, gathered);
    rows = gathered;
  }
  std::span<const std::byte> x = std::as_bytes(rows);
  Buffer narrow;
  if (options.row_dtype != DType::kF32) {
    narrow = Buffer(size * SizeOf(options.row_dtype));
    EncodeRows(rows, options.row_dtype, narrow.bytes());
    x = narrow.bytes();
  }
  ExpertRequest request{.tag = work.tag,
                        .row_count = static_cast<int32_t>(part.tokens.size()),
                        .hidden = hidden,
                        .dtype = options.row_dtype,
                        .reply_dtype = options.reply_dtype,
                        .shards = {},
                        .x = x};
  for (const ShardWork& shard : part.shards) {
    request.shards.push_back(
        {shard.shard, shard.slice, shard.row, shard.weight});
  }
  Buffer frame = transport::EncodeRequest(request);
  const size_t bytes = frame.size();
  const absl::Status sent =
      options.transport->Send(part.holder, std::move(frame));
  if (!sent.ok()) {
    return Error(absl::StatusCode::kUnavailable,
                 options.transport->PeerName(part.holder),
                 work.tag,
                 sent.message());
  }
  metrics.Sent(bytes);
  return absl::OkStatus();
}

// True when the delivery answered an open request; false when it was dropped.
absl::StatusOr<bool> RemoteExperts::Impl::Accept(Delivery delivery,
                                                 Pending* work) {
  const auto awaited = std::find_if(
      work->awaited.begin(), work->awaited.end(), [&](const Awaited& a) {
        return !a.answered && a.part->holder == delivery.from;
      });
  // Nobody waits for that worker: a duplicate, or news of an older step.
  if (awaited == work->awaited.end()) return false;
  const auto fail = [&](const absl::Status& why) {
    return Error(absl::StatusCode::kUnavailable,
                 options.transport->PeerName(delivery.from),
                 work->tag,
                 why.message());
  };
  if (!delivery.frame.ok()) return fail(delivery.frame.status());
  metrics.Received(delivery.frame->size());
  const Expected expected{.tag = work->tag,
                          .part = awaited->part,
                          .hidden = index.shape().hidden,
                          .dtype = options.reply_dtype};
  const absl::StatusOr<FrameMeaning> meaning =
      ReadReply(delivery.frame->bytes(), expected, &awaited->reply);
  if (!meaning.ok()) return fail(meaning.status());
  if (*meaning == FrameMeaning::kStale) return false;
  awaited->frame = *std::move(delivery.frame);
  awaited->answered = true;
  --work->open;
  return true;
}

absl::Status RemoteExperts::Impl::Silence(const Pending& work) const {
  std::vector<std::string> silent;
  for (const Awaited& awaited : work.awaited) {
    if (awaited.answered) continue;
    silent.push_back(options.transport->PeerName(awaited.part->holder));
  }
  return Error(
      absl::StatusCode::kDeadlineExceeded,
      absl::StrJoin(silent, ", "),
      work.tag,
      absl::StrCat("no reply within ", absl::FormatDuration(options.deadline)));
}

absl::Status RemoteExperts::Impl::Await(Pending* work) {
  const absl::Time begin = options.clock->Now();
  int32_t stale = 0;
  while (work->open > 0) {
    absl::StatusOr<Delivery> delivery =
        options.transport->Receive(work->deadline);
    if (absl::IsDeadlineExceeded(delivery.status())) return Silence(*work);
    if (!delivery.ok()) {
      return Error(absl::StatusCode::kUnavailable,
                   "any",
                   work->tag,
                   delivery.status().message());
    }
    const WorkerId from = delivery->from;
    ASSIGN_OR_RETURN(const bool answer, Accept(*std::move(delivery), work));
    if (!answer && ++stale > kStaleFramesMax) {
      return Error(absl::StatusCode::kUnavailable,
                   options.transport->PeerName(from),
                   work->tag,
                   "floods the exchange with frames that nobody asked for");
    }
  }
  metrics.Waited(options.clock->Now() - begin);
  return absl::OkStatus();
}

void RemoteExperts::Impl::AddReplies(const Pending& work,
                                     std::vector<Partial>* partials) {
  for (const Awaited& awaited : work.awaited) {
    for (const transport::ShardPartial& shard : awaited.reply.shards) {
      std::span<int32_t> token = workspace.Ints(shard.row.size());
      for (size_t i = 0; i < token.size(); ++i) {
        token[i] = awaited.part->tokens[static_cast<size_t>(shard.row[i])];
      }
      const size_t size = token.size() * index.shape().hidden;
      std::span<const float> sum(
          reinterpret_cast<const float*>(shard.sum.data()), size);
      if (awaited.reply.dtype != DType::kF32) {
        std::span<float> wide = workspace.Floats(size);
        DecodeRows(shard.sum, awaited.reply.dtype, wide);
        sum = wide;
      }
      partials->push_back({shard.shard, token, sum});
    }
  }
}

RemoteExperts::RemoteExperts(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
RemoteExperts::~RemoteExperts() = default;

absl::StatusOr<std::unique_ptr<RemoteExperts>> RemoteExperts::Create(
    RemoteOptions options) {
  const Placement& placement = options.placement;
  for (size_t i = 0; i < placement.holder.size(); ++i) {
    if (placement.holder[i] != kCoordinator) continue;
    const ShardId shard{static_cast<int32_t>(i)};
    if (options.local != nullptr && options.local->Holds(shard)) continue;
    return absl::NotFoundError(
        absl::StrCat("experts: the coordinator should hold shard ",
                     i,
                     ", but it is not loaded"));
  }
  ASSIGN_OR_RETURN(PlacementIndex index,
                   PlacementIndex::Create(placement, options.shape));
  return std::unique_ptr<RemoteExperts>(new RemoteExperts(
      std::make_unique<Impl>(std::move(options), std::move(index))));
}

void RemoteExperts::BeginStep() {
  ++impl_->step;
  impl_->pending.reset();
  // What a failed step left behind, above all the news of a broken link, is
  // not this step's business; Send tells when a link is still broken.
  for (int32_t i = 0; i < kStaleFramesMax; ++i) {
    if (!impl_->options.transport->Receive(impl_->options.clock->Now()).ok()) {
      break;
    }
  }
}

absl::StatusOr<Ticket> RemoteExperts::Start(LayerId layer,
                                            std::span<const float> x,
                                            const Routing& routing) {
  if (impl_->pending.has_value()) {
    return absl::FailedPreconditionError(
        "experts: Start was called before Finish of the work before");
  }
  const absl::Time begin = impl_->options.clock->Now();
  Pending work{.tag = {impl_->options.generation, impl_->step, layer},
               .x = x,
               .plan = {},
               .awaited = {},
               .deadline = begin + impl_->options.deadline,
               .open = 0};
  ASSIGN_OR_RETURN(work.plan, BuildPlan(routing, layer, impl_->index));
  for (const HolderPart& part : work.plan.parts) {
    if (part.holder == kCoordinator) continue;
    RETURN_IF_ERROR(impl_->SendPart(part, work));
    work.awaited.push_back({&part, false, Buffer(), {}});
    ++work.open;
  }
  impl_->metrics.Dispatched(impl_->options.clock->Now() - begin);
  impl_->pending.emplace(std::move(work));
  return Ticket{++impl_->ticket};
}

absl::Status RemoteExperts::Finish(Ticket ticket, std::span<float> out) {
  if (!impl_->pending.has_value() || ticket.id != impl_->ticket) {
    return absl::FailedPreconditionError(
        "experts: Finish was called with a ticket that is not open");
  }
  Pending work = *std::move(impl_->pending);
  impl_->pending.reset();
  kernels::Workspace::Scope scope(&impl_->workspace);
  std::vector<Partial> partials;
  // Our own shards while the frames travel.
  for (const HolderPart& part : work.plan.parts) {
    if (part.holder != kCoordinator) continue;
    RETURN_IF_ERROR(impl_->options.local->Compute(
        impl_->context, work.tag.layer, part, work.x, &partials));
  }
  RETURN_IF_ERROR(impl_->Await(&work));
  impl_->AddReplies(work, &partials);
  Combine(std::move(partials), impl_->index.shape().hidden, out);
  return absl::OkStatus();
}

}  // namespace conclave::experts
