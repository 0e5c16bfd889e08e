// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/linked_experts.h"

#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/transport/wire.h"
#include "coordinator/experts/exchange_metrics.h"
#include "coordinator/experts/link_failure.h"
#include "coordinator/experts/link_layers.h"
#include "kernels/device_held_pairs.h"
#include "kernels/device_link.h"
#include "kernels/device_pairs.h"

namespace conclave::experts {
namespace {

using kernels::DeviceBuffer;
using kernels::DeviceLink;
using kernels::LinkPart;

constexpr int32_t kExactGroup = 8;
// Frames of older steps that the beginning of one puts up with.
constexpr int32_t kStaleFramesMax = 1024;
// For membership to say whose connection broke, and between two questions.
constexpr absl::Duration kNamingMax = absl::Milliseconds(200);
constexpr absl::Duration kNamingLook = absl::Milliseconds(5);

// Of the shards of the layer that has most, and of the shared expert.
uint64_t PlaneBytes(const LinkedOptions& options, const LinkLayers& layers) {
  return (layers.shards_max() + 1) * static_cast<uint64_t>(options.rows_max) *
         static_cast<uint64_t>(options.shape.hidden) * sizeof(float);
}

}  // namespace

struct LinkedExperts::Impl {
  Impl(LinkedOptions given, LinkLayers of)
      : options(std::move(given)),
        layers(std::move(of)),
        metrics(options.metrics) {}

  std::string Peer(WorkerId worker) const {
    return options.transport->PeerName(worker);
  }
  size_t RowBytes() const {
    return static_cast<size_t>(options.shape.hidden) *
           (options.exact ? sizeof(float) : sizeof(uint16_t));
  }
  absl::Status Join();
  LinkInvitation InvitationOf(int32_t worker, const std::string& id) const;
  absl::Status Announce(int32_t rows, bool record);
  // Not OK: a worker is lost, or said no; `lost_by` is that worker.
  absl::Status Lost();
  absl::Status Heard();
  // What the link says of a step, with worker and layer.
  absl::Status Told(const absl::Status& status);
  absl::Status Named(const absl::Status& status);
  void CountBytes(int32_t rows);

  const LinkedOptions options;
  const LinkLayers layers;
  ExchangeMetrics metrics;
  kernels::DeviceQueue* queue = nullptr;
  DeviceBuffer numbers, words, planes;
  kernels::HeldPairs shared;
  std::unique_ptr<DeviceLink> link;
  uint64_t number = 0;  // of the link
  uint64_t step = 0;
  int64_t begun_at = 0;  // exchanges before the step
  bool in_step = false;
  std::optional<WorkerId> lost_by;
  absl::Status failure;
};

LinkInvitation LinkedExperts::Impl::InvitationOf(int32_t worker,
                                                 const std::string& id) const {
  return {.link = number,
          .id = id,
          .rank = 1 + worker,
          .ranks = 1 + options.workers,
          .rows_max = options.rows_max,
          .per_row = options.per_row,
          .experts = options.shape.experts,
          .join = options.connect,
          .exchange = options.deadline};
}

absl::Status LinkedExperts::Impl::Join() {
  for (int32_t i = 0; i < options.workers; ++i) {
    const LinkPeer peer = options.look(WorkerId{i});
    if (peer.gone.ok() && !peer.silent) continue;
    return absl::UnavailableError(
        absl::StrCat("worker ",
                     Peer(WorkerId{i}),
                     ": join: not ready: ",
                     peer.silent ? "it does not answer" : peer.gone.message()));
  }
  ASSIGN_OR_RETURN(const std::string id, DeviceLink::NewId());
  ++number;
  std::vector<absl::Status> said(static_cast<size_t>(options.workers));
  const auto refused = std::make_shared<std::atomic<bool>>(false);
  std::vector<std::thread> calls;
  for (int32_t i = 0; i < options.workers; ++i) {
    calls.emplace_back([this, i, id, refused, &said] {
      absl::Status& status = said[static_cast<size_t>(i)];
      status = options.join(WorkerId{i}, InvitationOf(i, id));
      if (!status.ok()) *refused = true;
    });
  }
  auto made = DeviceLink::Create(
      queue,
      {.id = id,
       .rank = 0,
       .ranks = 1 + options.workers,
       .join_deadline = options.connect,
       .deadline = options.deadline,
       .lost =
           [this, refused] {
             if (*refused) return absl::AbortedError("a worker did not join");
             return link == nullptr ? absl::OkStatus() : Lost();
           },
       .clock = options.clock});
  for (std::thread& call : calls) call.join();
  // A worker's own words say more than that it did not come.
  for (size_t i = 0; i < said.size(); ++i) {
    if (said[i].ok() || absl::IsDeadlineExceeded(said[i])) continue;
    return absl::UnavailableError(said[i].message());
  }
  if (!made.ok()) return absl::UnavailableError(made.status().message());
  for (const absl::Status& status : said) {
    if (!status.ok()) return absl::UnavailableError(status.message());
  }
  link = *std::move(made);
  return absl::OkStatus();
}

absl::Status LinkedExperts::Impl::Announce(int32_t rows, bool record) {
  const transport::StepFrame frame{
      .tag = {.generation = options.generation, .step = step},
      .link = number,
      .rows = rows,
      .record = record};
  for (int32_t i = 0; i < options.workers; ++i) {
    const absl::Status sent =
        options.transport->Send(WorkerId{i}, transport::EncodeStep(frame));
    if (sent.ok()) continue;
    return absl::UnavailableError(absl::StrCat(
        "worker ", Peer(WorkerId{i}), ": begin step: ", sent.message()));
  }
  return absl::OkStatus();
}

// What came of frames: answers to this step's announcement, broken links.
absl::Status LinkedExperts::Impl::Heard() {
  while (true) {
    absl::StatusOr<transport::Delivery> delivery =
        options.transport->Receive(options.clock->Now());
    if (!delivery.ok()) return absl::OkStatus();  // nothing came
    lost_by = delivery->from;
    RETURN_IF_ERROR(delivery->frame.status());
    const auto kind = transport::PeekKind(delivery->frame->bytes());
    if (kind.ok() && *kind == transport::FrameKind::kStep) continue;
    const auto error = transport::DecodeError(delivery->frame->bytes());
    if (!error.ok()) {
      return absl::UnavailableError(
          "the worker answers a step with what is neither it nor an error");
    }
    if (error->tag.step != step) continue;
    return absl::UnavailableError(
        absl::StrCat("the worker answers: ", error->message));
  }
}

absl::Status LinkedExperts::Impl::Lost() {
  RETURN_IF_ERROR(Heard());
  for (int32_t i = 0; i < options.workers; ++i) {
    const LinkPeer peer = options.look(WorkerId{i});
    lost_by = WorkerId{i};
    RETURN_IF_ERROR(peer.gone);
    if (peer.link == number && !peer.error.empty()) {
      return absl::UnavailableError(peer.error);
    }
  }
  lost_by.reset();
  return absl::OkStatus();
}

absl::Status LinkedExperts::Impl::Told(const absl::Status& status) {
  // Internal is the device's.
  if (status.ok() || absl::IsInternal(status)) return status;
  return failure = Named(status);
}

absl::Status LinkedExperts::Impl::Named(const absl::Status& status) {
  // NCCL misses a peer before membership does, and does not know its name.
  const absl::Time end = options.clock->Now() + kNamingMax;
  while (!absl::IsDeadlineExceeded(status) && !lost_by.has_value() &&
         Lost().ok() && options.clock->Now() < end) {
    options.clock->SleepUntil(options.clock->Now() + kNamingLook);
  }
  return NameFailure({.status = status,
                      .lost = lost_by,
                      .link = number,
                      .step = step,
                      .passed = link->passed() - begun_at,
                      .deadline = options.deadline},
                     layers,
                     options.look,
                     [this](WorkerId worker) { return Peer(worker); });
}

void LinkedExperts::Impl::CountBytes(int32_t rows) {
  const auto count = static_cast<size_t>(rows);
  const size_t sent =
      RowBytes() + static_cast<size_t>(options.per_row) * 2 * sizeof(int32_t);
  const size_t got = static_cast<size_t>(options.shape.hidden) * sizeof(float);
  for (const LinkLayers::Layer& layer : layers.elsewhere()) {
    metrics.Sent(count * sent * layer.holders.size());
    metrics.Received(count * got * layer.shards.size());
  }
}

LinkedExperts::LinkedExperts(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
LinkedExperts::~LinkedExperts() = default;

absl::StatusOr<std::unique_ptr<LinkedExperts>> LinkedExperts::Create(
    LinkedOptions options) {
  ASSIGN_OR_RETURN(LinkLayers layers,
                   LinkLayers::Create(
                       options.placement, options.shape, options.routed_here));
  return std::unique_ptr<LinkedExperts>(new LinkedExperts(
      std::make_unique<Impl>(std::move(options), std::move(layers))));
}

absl::StatusOr<uint64_t> LinkedExperts::BytesOf(const LinkedOptions& options) {
  ASSIGN_OR_RETURN(const LinkLayers layers,
                   LinkLayers::Create(
                       options.placement, options.shape, options.routed_here));
  return PlaneBytes(options, layers) +
         kernels::HeldPairsBytes(options.rows_max, options.per_row);
}

absl::Status LinkedExperts::Attach(kernels::DeviceQueue* queue) {
  Impl& d = *impl_;
  const LinkedOptions& o = d.options;
  const size_t words = kernels::HeldPairsBytes(o.rows_max, o.per_row);
  ASSIGN_OR_RETURN(
      d.planes, queue->Allocate(PlaneBytes(o, d.layers), "sums of other GPUs"));
  ASSIGN_OR_RETURN(d.words,
                   queue->Allocate(words, "pairs of the shared expert"));
  // The shared expert alone is here.
  std::vector<int32_t> numbers(static_cast<size_t>(o.shape.experts) + 1, -1);
  numbers.back() = o.shape.experts;
  const size_t bytes = numbers.size() * sizeof(int32_t);
  ASSIGN_OR_RETURN(d.numbers, queue->Allocate(bytes, "numbers of experts"));
  RETURN_IF_ERROR(queue->Upload(numbers.data(), bytes, d.numbers.as<void>()));
  d.queue = queue;
  return queue->Wait();
}

void LinkedExperts::Detach() {
  Leave();
  impl_->planes = {};
  impl_->words = {};
  impl_->numbers = {};
  impl_->queue = nullptr;
}

absl::Status LinkedExperts::BeginStep(int32_t rows, bool record) {
  Impl& d = *impl_;
  d.in_step = true;
  d.lost_by.reset();
  ++d.step;
  // What a failed step left behind is not this step's business.
  for (int32_t i = 0; i < kStaleFramesMax; ++i) {
    if (!d.options.transport->Receive(d.options.clock->Now()).ok()) break;
  }
  d.failure = d.link == nullptr ? d.Join() : absl::OkStatus();
  RETURN_IF_ERROR(d.failure);
  d.begun_at = d.link->passed();
  d.failure = d.Announce(rows, record);
  if (d.failure.ok()) d.CountBytes(rows);
  return d.failure;
}

absl::Status LinkedExperts::Start(LayerId layer,
                                  const kernels::DeviceEntries& all,
                                  const kernels::DeviceRows& u) {
  Impl& d = *impl_;
  const auto rows = static_cast<size_t>(all.rows);
  const size_t choices =
      rows * static_cast<size_t>(all.per_row) * sizeof(int32_t);
  std::vector<LinkPart> sends;
  for (const LinkLayers::Holder& holder : d.layers.at(layer).holders) {
    const int32_t rank = 1 + Index(holder.worker);
    sends.push_back({rank, u.data, rows * d.RowBytes()});
    sends.push_back({rank, all.expert, choices});
    sends.push_back({rank, all.weight, choices});
  }
  RETURN_IF_ERROR(d.Told(d.link->Exchange(sends, {})));
  const kernels::DeviceChoices chosen{
      all.rows, all.per_row, all.expert, all.weight};
  const int32_t numbers = d.options.shape.experts + 1;
  const kernels::DeviceHeld here{numbers, numbers, d.numbers.as<int32_t>()};
  const int32_t group_rows =
      d.options.exact ? kExactGroup : kernels::GroupRowsFor(all.rows, 1);
  d.shared =
      kernels::HeldPairsAt(chosen, here, group_rows, d.words.as<int32_t>());
  // One pair of each row, all of one expert.
  d.shared.entries.groups_max = (all.rows + group_rows - 1) / group_rows;
  return kernels::DeviceHeldPairs(d.queue, chosen, here, d.shared);
}

const kernels::DeviceEntries& LinkedExperts::shared() const {
  return impl_->shared.entries;
}

absl::Status LinkedExperts::Finish(LayerId layer,
                                   const float* pairs,
                                   kernels::DeviceAddend* sum) {
  Impl& d = *impl_;
  const LinkLayers::Layer& of = d.layers.at(layer);
  const int32_t hidden = d.options.shape.hidden;
  const size_t plane =
      static_cast<size_t>(d.shared.sums.rows) * static_cast<size_t>(hidden);
  float* planes = d.planes.as<float>();
  RETURN_IF_ERROR(kernels::DeviceSumPairs(d.queue,
                                          d.shared.sums,
                                          pairs,
                                          hidden,
                                          planes + of.shards.size() * plane));
  std::vector<LinkPart> receives;
  for (size_t i = 0; i < of.shards.size(); ++i) {
    receives.push_back(
        {1 + Index(of.shards[i]), planes + i * plane, plane * sizeof(float)});
  }
  RETURN_IF_ERROR(d.Told(d.link->Exchange({}, receives)));
  *sum = {.dense = planes,
          .planes = static_cast<int32_t>(of.shards.size()) + 1};
  return absl::OkStatus();
}

absl::Status LinkedExperts::Wait() {
  Impl& d = *impl_;
  const absl::Time begin = d.options.clock->Now();
  const absl::Status status = d.link->Wait();
  d.metrics.Waited(d.options.clock->Now() - begin);
  d.in_step = !status.ok();
  return d.Told(status);
}

bool LinkedExperts::in_step() const { return impl_->in_step; }

void LinkedExperts::Leave() {
  impl_->link = nullptr;
  impl_->in_step = false;
}

const absl::Status& LinkedExperts::failure() const { return impl_->failure; }

}  // namespace conclave::experts
