// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/remote_experts.h"

#include <algorithm>
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
#include "coordinator/experts/open_work.h"
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

// The work between Start and Finish of a micro-batch.
struct Pending {
  FrameTag tag;
  std::span<const float> x;
  DispatchPlan plan;
  std::vector<Awaited> awaited;
  absl::Time deadline;
  int32_t open = 0;  // of awaited, not answered yet

  // What the worker owes; null: nothing, or nothing any more.
  Awaited* Owed(WorkerId worker) {
    const auto owed =
        std::find_if(awaited.begin(), awaited.end(), [&](const Awaited& a) {
          return !a.answered && a.part->holder == worker;
        });
    return owed == awaited.end() ? nullptr : &*owed;
  }
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
  absl::StatusOr<bool> Answers(const Delivery& delivery,
                               const Pending& work,
                               Awaited* awaited) const;
  absl::Status Silence(const Pending& work) const;
  void AddReplies(const Pending& work, std::vector<Partial>* partials);
  absl::Status Gather(Pending* work, std::vector<Partial>* partials);

  RemoteOptions options;
  PlacementIndex index;
  kernels::Workspace workspace;
  kernels::Context context;
  ExchangeMetrics metrics;
  uint64_t step = 0;       // of the first micro-batch
  uint64_t next_step = 1;  // of the step after this one
  OpenWork<Pending> open;
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

// Whether it is the answer that is awaited; if so, `awaited` has it read, but
// not its bytes.
absl::StatusOr<bool> RemoteExperts::Impl::Answers(const Delivery& delivery,
                                                  const Pending& work,
                                                  Awaited* awaited) const {
  const auto fail = [&](const absl::Status& why) {
    return Error(absl::StatusCode::kUnavailable,
                 options.transport->PeerName(delivery.from),
                 work.tag,
                 why.message());
  };
  if (!delivery.frame.ok()) return fail(delivery.frame.status());
  const Expected expected{.tag = work.tag,
                          .part = awaited->part,
                          .hidden = index.shape().hidden,
                          .dtype = options.reply_dtype};
  const absl::StatusOr<FrameMeaning> meaning =
      ReadReply(delivery.frame->bytes(), expected, &awaited->reply);
  if (!meaning.ok()) return fail(meaning.status());
  return *meaning == FrameMeaning::kAnswer;
}

// True when the delivery answered an open request, of this work or of another
// micro-batch; false when it was dropped.
absl::StatusOr<bool> RemoteExperts::Impl::Accept(Delivery delivery,
                                                 Pending* work) {
  if (delivery.frame.ok()) metrics.Received(delivery.frame->size());
  std::vector<Pending*> all = open.Others(work);
  all.insert(all.begin(), work);
  for (Pending* one : all) {
    // Nobody waits for that worker: a duplicate, or news of an older step.
    Awaited* awaited = one->Owed(delivery.from);
    if (awaited == nullptr) continue;
    ASSIGN_OR_RETURN(const bool answers, Answers(delivery, *one, awaited));
    if (!answers) continue;
    awaited->frame = *std::move(delivery.frame);
    awaited->answered = true;
    --one->open;
    return true;
  }
  return false;
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

// All partial sums of the work.
absl::Status RemoteExperts::Impl::Gather(Pending* work,
                                         std::vector<Partial>* partials) {
  // Our own shards while the frames travel.
  for (const HolderPart& part : work->plan.parts) {
    if (part.holder != kCoordinator) continue;
    RETURN_IF_ERROR(options.local->Compute(
        context, work->tag.layer, part, work->x, partials));
  }
  RETURN_IF_ERROR(Await(work));
  AddReplies(*work, partials);
  return absl::OkStatus();
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

void RemoteExperts::BeginStep(int32_t micro_batches) {
  impl_->step = impl_->next_step;
  impl_->next_step += static_cast<uint64_t>(micro_batches);
  impl_->open.BeginStep(micro_batches);
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
  RETURN_IF_ERROR(impl_->open.CheckFree(routing.micro_batch));
  const absl::Time begin = impl_->options.clock->Now();
  const uint64_t step =
      impl_->step + static_cast<uint64_t>(routing.micro_batch);
  Pending work{.tag = {impl_->options.generation, step, layer},
               .x = x,
               .plan = {},
               .awaited = {},
               .deadline = begin + impl_->options.deadline,
               .open = 0};
  ASSIGN_OR_RETURN(work.plan, BuildPlan(routing, layer, impl_->index));
  for (const HolderPart& part : work.plan.parts) {
    if (part.holder == kCoordinator) continue;
    const absl::Status sent = impl_->SendPart(part, work);
    if (!sent.ok()) {
      impl_->open.CloseAll();
      return sent;
    }
    work.awaited.push_back({&part, false, Buffer(), {}});
    ++work.open;
  }
  impl_->metrics.Dispatched(impl_->options.clock->Now() - begin);
  return impl_->open.Add(routing.micro_batch, std::move(work));
}

absl::Status RemoteExperts::Finish(Ticket ticket, std::span<float> out) {
  Pending* work = impl_->open.Find(ticket);
  if (work == nullptr) return impl_->open.NotOpen();
  kernels::Workspace::Scope scope(&impl_->workspace);
  std::vector<Partial> partials;
  const absl::Status status = impl_->Gather(work, &partials);
  if (!status.ok()) {
    impl_->open.CloseAll();
    return status;
  }
  Combine(std::move(partials), impl_->index.shape().hidden, out);
  impl_->open.Close(work);
  return absl::OkStatus();
}

}  // namespace conclave::experts
