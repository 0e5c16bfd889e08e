// SPDX-License-Identifier: Apache-2.0
#include "worker/expert_runner.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "common/status_macros.h"

namespace conclave::worker {
namespace {

using transport::ExpertRequest;
using transport::ShardEntries;

// Distinct rows of the entries, ascending.
std::span<const int32_t> DistinctRows(const ShardEntries& entries,
                                      kernels::Workspace* workspace) {
  const std::span<int32_t> rows = workspace->Ints(entries.row.size());
  std::copy(entries.row.begin(), entries.row.end(), rows.begin());
  std::sort(rows.begin(), rows.end());
  const auto end = std::unique(rows.begin(), rows.end());
  return rows.first(static_cast<size_t>(end - rows.begin()));
}

// Where each entry's row stands among the distinct ones.
std::span<const int32_t> LocalRows(const ShardEntries& entries,
                                   std::span<const int32_t> rows,
                                   kernels::Workspace* workspace) {
  const std::span<int32_t> local = workspace->Ints(entries.row.size());
  for (size_t i = 0; i < local.size(); ++i) {
    local[i] = static_cast<int32_t>(
        std::lower_bound(rows.begin(), rows.end(), entries.row[i]) -
        rows.begin());
  }
  return local;
}

}  // namespace

ExpertRunner::ExpertRunner(std::string name,
                           const ExpertStore* store,
                           ShardSums* sums)
    : name_(std::move(name)), store_(store), sums_(sums) {}

Buffer ExpertRunner::Handle(std::span<const std::byte> frame) {
  const auto kind = transport::PeekKind(frame);
  if (kind.ok() && *kind == transport::FrameKind::kProbe) {
    return AnswerProbe(frame);
  }
  const auto request = transport::DecodeRequest(frame);
  if (!request.ok()) {
    return transport::EncodeError(
        {.tag = {},
         .code = request.status().code(),
         .message =
             absl::StrCat("worker ", name_, ": ", request.status().message())});
  }
  auto reply = Run(*request);
  frames_.fetch_add(1, std::memory_order_relaxed);
  if (reply.ok()) return *std::move(reply);
  return transport::EncodeError(
      {.tag = request->tag,
       .code = reply.status().code(),
       .message =
           absl::StrCat("worker ", name_, ": ", reply.status().message())});
}

Buffer ExpertRunner::AnswerProbe(std::span<const std::byte> frame) const {
  const auto probe = transport::DecodeProbe(frame);
  if (!probe.ok()) {
    return transport::EncodeError(
        {.tag = {},
         .code = probe.status().code(),
         .message =
             absl::StrCat("worker ", name_, ": ", probe.status().message())});
  }
  return transport::EncodeProbe({.tag = probe->tag,
                                 .payload_bytes = probe->reply_bytes,
                                 .reply_bytes = 0});
}

absl::Status ExpertRunner::RunShard(const Assignment& assignment,
                                    const ExpertRequest& request,
                                    const ShardEntries& entries,
                                    std::span<const int32_t> rows,
                                    Buffer* sum) {
  const auto it = assignment.held.find(entries.shard);
  if (it == assignment.held.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("shard ", Index(entries.shard), " is not held here"));
  }
  const auto layer = static_cast<size_t>(Index(request.tag.layer));
  const int32_t slices = it->second->weights.layers[layer].slices;
  // Entries ascend by slice, so the last one has the largest.
  if (!entries.slice.empty() && entries.slice.back() >= slices) {
    return absl::InvalidArgumentError(absl::StrCat("slice ",
                                                   entries.slice.back(),
                                                   " of shard ",
                                                   Index(entries.shard),
                                                   ", which has ",
                                                   slices,
                                                   " in layer ",
                                                   layer));
  }
  if (rows.empty()) return absl::OkStatus();
  const kernels::ExpertEntries local{
      .slice = entries.slice,
      .row = LocalRows(entries, rows, &workspace_),
      .weight = entries.weight};
  const size_t numbers = rows.size() * static_cast<size_t>(request.hidden);
  const bool narrow = request.reply_dtype == DType::kBF16;
  const std::span<float> out =
      narrow ? workspace_.Floats(numbers)
             : std::span(reinterpret_cast<float*>(sum->data()), numbers);
  RETURN_IF_ERROR(sums_->Sum({.shard = it->second.get(),
                              .layer = layer,
                              .hidden = request.hidden,
                              .activations = assignment.activations,
                              .x = request.x,
                              .dtype = request.dtype,
                              .rows = rows,
                              .entries = local},
                             out));
  if (narrow) {
    std::transform(out.begin(),
                   out.end(),
                   reinterpret_cast<uint16_t*>(sum->data()),
                   ToBf16);
  }
  return absl::OkStatus();
}

absl::StatusOr<Buffer> ExpertRunner::Run(const ExpertRequest& request) {
  const auto assignment = store_->current();
  if (assignment == nullptr) {
    return absl::FailedPreconditionError("no experts are assigned yet");
  }
  if (assignment->generation != request.tag.generation) {
    return absl::FailedPreconditionError(
        absl::StrCat("experts are assigned by generation ",
                     assignment->generation,
                     ", the request is of generation ",
                     request.tag.generation));
  }
  if (Index(request.tag.layer) >= assignment->layers ||
      request.hidden != assignment->hidden) {
    return absl::InvalidArgumentError(absl::StrCat("layer ",
                                                   Index(request.tag.layer),
                                                   " of width ",
                                                   request.hidden,
                                                   ", the model has ",
                                                   assignment->layers,
                                                   " layers of width ",
                                                   assignment->hidden));
  }
  const kernels::Workspace::Scope scope(&workspace_);
  transport::ExpertReply reply{.tag = request.tag,
                               .hidden = request.hidden,
                               .dtype = request.reply_dtype,
                               .shards = {}};
  std::vector<Buffer> sums;
  sums.reserve(request.shards.size());
  for (const ShardEntries& entries : request.shards) {
    const std::span<const int32_t> rows = DistinctRows(entries, &workspace_);
    Buffer& sum =
        sums.emplace_back(rows.size() * static_cast<size_t>(request.hidden) *
                          SizeOf(reply.dtype));
    RETURN_IF_ERROR(RunShard(*assignment, request, entries, rows, &sum));
    reply.shards.push_back(
        {.shard = entries.shard, .row = rows, .sum = sum.bytes()});
  }
  return transport::EncodeReply(reply);
}

}  // namespace conclave::worker
