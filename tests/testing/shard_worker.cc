// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/shard_worker.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "common/transport/wire.h"
#include "coordinator/experts/plan.h"
#include "coordinator/experts/rows.h"

namespace conclave::testing {
namespace {

using experts::HolderPart;
using experts::Partial;
using transport::ExpertReply;
using transport::ExpertRequest;

HolderPart PartOf(const ExpertRequest& request) {
  HolderPart part;
  for (int32_t r = 0; r < request.row_count; ++r) part.tokens.push_back(r);
  for (const auto& shard : request.shards) {
    part.shards.push_back({shard.shard,
                           {shard.slice.begin(), shard.slice.end()},
                           {shard.row.begin(), shard.row.end()},
                           {shard.weight.begin(), shard.weight.end()}});
  }
  return part;
}

absl::StatusOr<Buffer> Answer(const experts::LocalShards& shards,
                              const kernels::Context& context,
                              std::span<const std::byte> frame) {
  ASSIGN_OR_RETURN(const ExpertRequest request,
                   transport::DecodeRequest(frame));
  const kernels::Workspace::Scope scope(context.workspace);
  std::vector<float> x(static_cast<size_t>(request.row_count) * request.hidden);
  experts::DecodeRows(request.x, request.dtype, x);
  const HolderPart part = PartOf(request);
  std::vector<Partial> partials;
  RETURN_IF_ERROR(
      shards.Compute(context, request.tag.layer, part, x, &partials));
  ExpertReply reply{.tag = request.tag,
                    .hidden = request.hidden,
                    .dtype = request.reply_dtype,
                    .shards = {}};
  std::vector<std::vector<int32_t>> rows;
  std::vector<Buffer> sums;
  for (size_t i = 0; i < partials.size(); ++i) {
    rows.push_back(
        experts::DistinctRows(part.shards[i].row, part.tokens.size()));
    std::vector<float> sum(rows.back().size() * request.hidden);
    experts::GatherRows(partials[i].sum, rows.back(), request.hidden, sum);
    sums.emplace_back(sum.size() * SizeOf(reply.dtype));
    experts::EncodeRows(sum, reply.dtype, sums.back().bytes());
    reply.shards.push_back(
        {partials[i].shard, rows.back(), sums.back().bytes()});
  }
  return transport::EncodeReply(reply);
}

}  // namespace

transport::FrameHandler ShardWorker(const experts::LocalShards* shards,
                                    kernels::Backend backend,
                                    ThreadPool* pool) {
  auto workspace = std::make_shared<kernels::Workspace>();
  return [=](std::span<const std::byte> frame) {
    auto answer = Answer(*shards, {backend, pool, workspace.get()}, frame);
    if (answer.ok()) return *std::move(answer);
    return transport::EncodeError(
        {.tag = {},
         .code = answer.status().code(),
         .message = std::string(answer.status().message())});
  };
}

}  // namespace conclave::testing
