// SPDX-License-Identifier: Apache-2.0
#include "worker/expert_runner.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "common/status_macros.h"
#include "kernels/moe.h"

namespace conclave::worker {
namespace {

using transport::ExpertRequest;
using transport::ShardEntries;
using transport::ShardPartial;

void WidenRow(std::span<const std::byte> from, std::span<float> to) {
  const auto* bits = reinterpret_cast<const uint16_t*>(from.data());
  for (size_t i = 0; i < to.size(); ++i) {
    to[i] = FromBf16(bits[i]);
  }
}

void WriteRows(std::span<const float> from, DType dtype, std::byte* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from.data(), from.size_bytes());
    return;
  }
  auto* bits = reinterpret_cast<uint16_t*>(to);
  std::transform(from.begin(), from.end(), bits, ToBf16);
}

// The rows of the request as floats; no copy if they are that already.
std::span<const float> RowsOf(const ExpertRequest& request,
                              kernels::Workspace* workspace) {
  const size_t count = static_cast<size_t>(request.row_count) *
                       static_cast<size_t>(request.hidden);
  if (request.dtype == DType::kF32) {
    return {reinterpret_cast<const float*>(request.x.data()), count};
  }
  const std::span<float> x = workspace->Floats(count);
  WidenRow(request.x, x);
  return x;
}

// Distinct rows of the entries, ascending.
std::span<const int32_t> DistinctRows(const ShardEntries& entries,
                                      kernels::Workspace* workspace) {
  const std::span<int32_t> rows = workspace->Ints(entries.row.size());
  std::copy(entries.row.begin(), entries.row.end(), rows.begin());
  std::sort(rows.begin(), rows.end());
  const auto end = std::unique(rows.begin(), rows.end());
  return rows.first(static_cast<size_t>(end - rows.begin()));
}

// Partial sums of one shard, for its own rows only: [rows.size(), hidden].
absl::StatusOr<std::span<const float>> RunShard(
    const kernels::Context& context,
    const kernels::ShardLayerWeights& weights,
    const ShardEntries& entries,
    std::span<const float> x,
    std::span<const int32_t> rows) {
  const auto hidden = static_cast<size_t>(weights.hidden);
  kernels::Workspace* workspace = context.workspace;
  const std::span<float> compact = workspace->Floats(rows.size() * hidden);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto from = x.subspan(static_cast<size_t>(rows[i]) * hidden, hidden);
    std::copy(from.begin(), from.end(), compact.begin() + i * hidden);
  }
  const std::span<int32_t> local = workspace->Ints(entries.row.size());
  for (size_t i = 0; i < local.size(); ++i) {
    local[i] = static_cast<int32_t>(
        std::lower_bound(rows.begin(), rows.end(), entries.row[i]) -
        rows.begin());
  }
  const std::span<float> out = workspace->Floats(rows.size() * hidden);
  RETURN_IF_ERROR(kernels::ExpertFfn(
      context,
      weights,
      {.slice = entries.slice, .row = local, .weight = entries.weight},
      compact,
      static_cast<int64_t>(rows.size()),
      out));
  return out;
}

}  // namespace

ExpertRunner::ExpertRunner(std::string name,
                           const ExpertStore* store,
                           kernels::Backend backend,
                           ThreadPool* pool)
    : name_(std::move(name)),
      store_(store),
      context_{.backend = backend, .pool = pool, .workspace = &workspace_} {}

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
  context_.activations = assignment->activations;
  const kernels::Workspace::Scope scope(&workspace_);
  const std::span<const float> x = RowsOf(request, &workspace_);
  transport::ExpertReply reply{.tag = request.tag,
                               .hidden = request.hidden,
                               .dtype = request.reply_dtype,
                               .shards = {}};
  std::vector<Buffer> sums;
  sums.reserve(request.shards.size());
  for (const ShardEntries& entries : request.shards) {
    const auto it = assignment->shards.find(entries.shard);
    if (it == assignment->shards.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("shard ", Index(entries.shard), " is not held here"));
    }
    const auto& layer =
        it->second->layers[static_cast<size_t>(Index(request.tag.layer))];
    // Entries ascend by slice, so the last one has the largest.
    if (!entries.slice.empty() && entries.slice.back() >= layer.slices) {
      return absl::InvalidArgumentError(absl::StrCat("slice ",
                                                     entries.slice.back(),
                                                     " of shard ",
                                                     Index(entries.shard),
                                                     ", which has ",
                                                     layer.slices,
                                                     " in layer ",
                                                     Index(request.tag.layer)));
    }
    const std::span<const int32_t> rows = DistinctRows(entries, &workspace_);
    Buffer& sum =
        sums.emplace_back(rows.size() * static_cast<size_t>(request.hidden) *
                          SizeOf(reply.dtype));
    if (!rows.empty()) {
      ASSIGN_OR_RETURN(
          const std::span<const float> partial,
          RunShard(
              context_, kernels::ViewOf(layer.Stacked()), entries, x, rows));
      WriteRows(partial, reply.dtype, sum.data());
    }
    reply.shards.push_back(
        {.shard = entries.shard, .row = rows, .sum = sum.bytes()});
  }
  return transport::EncodeReply(reply);
}

}  // namespace conclave::worker
