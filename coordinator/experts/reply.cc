// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/reply.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave::experts {
namespace {

using transport::ErrorReply;
using transport::ExpertReply;
using transport::FrameKind;
using transport::FrameTag;

template <typename... Parts>
absl::Status Wrong(const Parts&... parts) {
  return absl::UnavailableError(absl::StrCat("wrong reply: ", parts...));
}

absl::Status Garbage(const absl::Status& status) {
  return absl::UnavailableError(
      absl::StrCat("garbage reply: ", status.message()));
}

absl::Status CheckReply(const ExpertReply& reply, const Expected& expected) {
  if (reply.hidden != expected.hidden) {
    return Wrong("hidden ", reply.hidden, " instead of ", expected.hidden);
  }
  if (reply.dtype != expected.dtype) {
    return Wrong(std::string(Name(reply.dtype)),
                 " rows instead of ",
                 std::string(Name(expected.dtype)));
  }
  const HolderPart& part = *expected.part;
  if (reply.shards.size() != part.shards.size()) {
    return Wrong(
        reply.shards.size(), " shards instead of ", part.shards.size());
  }
  for (size_t i = 0; i < part.shards.size(); ++i) {
    const ShardWork& work = part.shards[i];
    if (reply.shards[i].shard != work.shard) {
      return Wrong("shard ",
                   Index(reply.shards[i].shard),
                   " instead of ",
                   Index(work.shard));
    }
    const std::vector<int32_t> rows =
        DistinctRows(work.row, part.tokens.size());
    if (!std::ranges::equal(reply.shards[i].row, rows)) {
      return Wrong(
          "shard ", Index(work.shard), " has other rows than were asked for");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FrameMeaning> ReadReply(std::span<const std::byte> frame,
                                       const Expected& expected,
                                       ExpertReply* reply) {
  const absl::StatusOr<FrameKind> kind = transport::PeekKind(frame);
  if (!kind.ok()) return Garbage(kind.status());
  switch (*kind) {
    case FrameKind::kRequest:
      return Wrong("a request where a reply was due");
    case FrameKind::kProbe:
      return Wrong("a probe where a reply was due");
    case FrameKind::kStep:
      return Wrong("a step where a reply was due");
    case FrameKind::kError: {
      const absl::StatusOr<ErrorReply> error = transport::DecodeError(frame);
      if (!error.ok()) return Garbage(error.status());
      // A worker that could not read the request's tag repeats an empty one.
      if (error->tag != expected.tag && error->tag != FrameTag{}) {
        return FrameMeaning::kStale;
      }
      return absl::UnavailableError(
          absl::StrCat("the worker answers: ",
                       absl::StatusCodeToString(error->code),
                       ": ",
                       error->message));
    }
    case FrameKind::kReply:
      break;
  }
  absl::StatusOr<ExpertReply> decoded = transport::DecodeReply(frame);
  if (!decoded.ok()) return Garbage(decoded.status());
  if (decoded->tag != expected.tag) return FrameMeaning::kStale;
  RETURN_IF_ERROR(CheckReply(*decoded, expected));
  *reply = *std::move(decoded);
  return FrameMeaning::kAnswer;
}

}  // namespace conclave::experts
